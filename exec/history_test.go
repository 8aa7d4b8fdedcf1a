package exec

import (
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"img/dag"
)

// A history is a list of "NAME", with "+" before it if it has a layer and "@SECONDS" behind it if it has a time.
func TestSettleHistory(t *testing.T) {
	for _, c := range []struct {
		name    string
		base    int    // entries of the base
		layers  int    // of the base
		history string // before
		packed  []int64
		epoch   int64
		want    string // after, and "= SECONDS" for the image
	}{
		{"layers have their times, others that of the layer before", 1, 1, "+base@5 env +run copy +copy cmd", []int64{20, 30}, 0,
			"+base@5 env@20 +run@20 copy@20 +copy@30 cmd@30 = 30"},
		{"without a new layer, that of the base", 2, 1, "+base@5 cmd@6 env label", nil, 0, "+base@5 cmd@6 env@6 label@6 = 6"},
		{"nothing has a time", 0, 0, "env", nil, 0, "env = 0"},
		{"a base without times keeps none", 2, 2, "+a +b env +run", []int64{9}, 0, "+a +b env@9 +run@9 = 9"},
		{"a layer of a cached step is older than its base's", 1, 1, "+base@50 +run +copy", []int64{20, 60}, 0, "+base@50 +run@20 +copy@60 = 60"},
		{"an epoch is the time of all that is new", 1, 1, "+base@5 env +run", []int64{20}, 7, "+base@5 env@7 +run@7 = 7"},
		{"an epoch before the base's", 1, 1, "+base@50 env", nil, 7, "+base@50 env@7 = 7"},
		{"layers of a base without an entry", 0, 2, "+run", []int64{20}, 0, "+run@20 +exporter@20 +exporter@20 = 20"},
		{"a base without a history", 0, 1, "env cmd", nil, 0, "env cmd +exporter = 0"},
		{"more entries than layers", 3, 1, "+a@1 +b@2 +c@3 env +run", []int64{20}, 0, "+a@1 +b@2 c@3 env@3 run@3 = 3"},
	} {
		cfg := &v1.ConfigFile{History: historyOf(c.history)}
		op := &dag.Manifest{BaseHistory: c.base, BaseLayers: make([]dag.Layer, c.layers)}
		if c.epoch != 0 {
			op.Epoch = &c.epoch
		}
		var times []time.Time
		for _, p := range c.packed {
			times = append(times, time.Unix(p, 0).UTC())
		}
		settleHistory(cfg, op, times)
		if got := historyWords(cfg); got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, got, c.want)
		}
	}
}

func historyOf(text string) (out []v1.History) {
	for _, w := range strings.Fields(text) {
		name, seconds, timed := strings.Cut(w, "@")
		h := v1.History{CreatedBy: strings.TrimPrefix(name, "+"), EmptyLayer: !strings.HasPrefix(name, "+")}
		if timed {
			var n int64
			fmt.Sscan(seconds, &n)
			h.Created = v1.Time{Time: time.Unix(n, 0).UTC()}
		}
		out = append(out, h)
	}
	return out
}

func historyWords(cfg *v1.ConfigFile) string {
	seconds := func(t v1.Time) int64 {
		if t.IsZero() {
			return 0
		}
		return t.Unix()
	}
	var out []string
	for _, h := range cfg.History {
		w := h.CreatedBy
		if h.Comment == exporterComment {
			w = "exporter"
		}
		if !h.EmptyLayer {
			w = "+" + w
		}
		if n := seconds(h.Created); n > 0 {
			w += fmt.Sprint("@", n)
		}
		out = append(out, w)
	}
	return fmt.Sprintf("%s = %d", strings.Join(out, " "), seconds(cfg.Created))
}
