package exec

import (
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"img/dag"
)

// exporterComment marks the history entries of layers that no entry tells of, as BuildKit has it.
const exporterComment = "buildkit.exporter.image.v0"

// settleHistory makes the history one of the image's layers, of which the packed ones, with the times at which they were made, stand above
// the base's, and fills in the times that lowering left open. Entries of the base are not changed, but for layers that do not exist.
//
// The rules are BuildKit's. A layer's entry has the layer's time. Another has that of the layer before it; before the first new layer, that
// layer's. The image has the time of its last entry. With an epoch, everything new has that.
func settleHistory(cfg *v1.ConfigFile, op *dag.Manifest, packed []time.Time) {
	if op.OmitHistory {
		cfg.History = nil
	} else {
		countLayers(cfg, len(op.BaseLayers)+len(packed))
	}
	if op.Epoch != nil {
		epoch := time.Unix(*op.Epoch, 0).UTC()
		setMissing(cfg, op.BaseHistory, func(int) time.Time { return epoch })
		cfg.Created = v1.Time{Time: epoch}
		return
	}
	setMissing(cfg, op.BaseHistory, layerTimes(cfg, len(op.BaseLayers), packed))
	setMissing(cfg, op.BaseHistory, neighbours(cfg, op.BaseHistory))
	cfg.Created = v1.Time{}
	for _, h := range cfg.History {
		if !h.Created.IsZero() {
			cfg.Created = h.Created
		}
	}
	if op.OmitHistory && len(packed) > 0 {
		cfg.Created = v1.Time{Time: packed[len(packed)-1]}
	}
}

// countLayers makes as many entries have a layer as there are layers: entries that are too many lose theirs, from the first that has none;
// missing ones come last.
func countLayers(cfg *v1.ConfigFile, layers int) {
	n := 0
	for i := range cfg.History {
		h := &cfg.History[i]
		if n == layers {
			h.EmptyLayer = true
		}
		if !h.EmptyLayer {
			n++
		}
	}
	for ; n < layers; n++ {
		cfg.History = append(cfg.History, v1.History{Comment: exporterComment})
	}
}

// setMissing gives the entries from the first new one on that have no time the one that at says, if any.
func setMissing(cfg *v1.ConfigFile, first int, at func(i int) time.Time) {
	for i := first; i < len(cfg.History); i++ {
		if h := &cfg.History[i]; h.Created.IsZero() {
			h.Created = v1.Time{Time: at(i)}
		}
	}
}

// layerTimes finds the times of entries with a packed layer.
func layerTimes(cfg *v1.ConfigFile, base int, packed []time.Time) func(i int) time.Time {
	times := make([]time.Time, len(cfg.History))
	layer := 0
	for i, h := range cfg.History {
		if h.EmptyLayer {
			continue
		}
		if layer >= base {
			times[i] = packed[layer-base]
		}
		layer++
	}
	return func(i int) time.Time { return times[i] }
}

// neighbours finds the times of new entries without a layer.
func neighbours(cfg *v1.ConfigFile, first int) func(i int) time.Time {
	missing := func(i int) bool { return i >= first && cfg.History[i].Created.IsZero() }
	var at time.Time // of the first layer after an entry that misses its time, else of the last one
	seen := false
	for i, h := range cfg.History {
		if missing(i) {
			seen = true
		} else if !h.Created.IsZero() {
			if at = h.Created.Time; seen {
				break
			}
		}
	}
	times := make([]time.Time, len(cfg.History))
	seen = false
	for i, h := range cfg.History {
		if missing(i) {
			times[i], seen = at, true
		} else if seen && !h.Created.IsZero() {
			at = h.Created.Time
		}
	}
	return func(i int) time.Time { return times[i] }
}
