package image

import (
	"encoding/json"
	"fmt"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// AssembleOptions of Assemble.
type AssembleOptions struct {
	// Docker chooses Docker's media types.
	Docker      bool
	Annotations map[string]string
	// StartInterval of the health check; ignored without one.
	StartInterval time.Duration
}

// Assemble makes an image of a configuration and layers: rootfs is filled in, configuration and manifest are marshalled
// canonically (equal input, equal bytes). cfg is not changed.
func Assemble(cfg *v1.ConfigFile, layers []Layer, o AssembleOptions) (*Image, error) {
	if len(layers) > MaxLayers {
		return nil, fmt.Errorf("%d layers, limit is %d", len(layers), MaxLayers)
	}
	img := &Image{Config: cfg.DeepCopy(), Layers: append([]Layer(nil), layers...), StartInterval: o.StartInterval}
	img.Config.RootFS = v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{}}
	img.Manifest = &v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Layers: []v1.Descriptor{}, Annotations: o.Annotations}
	for i, l := range layers {
		d, err := layerDescriptor(l, o.Docker)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
		img.Layers[i].Descriptor = d
		img.Manifest.Layers = append(img.Manifest.Layers, d)
		img.Config.RootFS.DiffIDs = append(img.Config.RootFS.DiffIDs, l.DiffID)
	}
	configType := types.OCIConfigJSON
	if o.Docker {
		img.Manifest.MediaType, configType = types.DockerManifestSchema2, types.DockerConfigJSON
	}
	var err error
	if img.RawConfig, err = MarshalConfig(img.Config, o.StartInterval); err != nil {
		return nil, fmt.Errorf("marshal config: %w", err)
	}
	img.Manifest.Config = v1.Descriptor{MediaType: configType, Size: int64(len(img.RawConfig)), Digest: Digest(img.RawConfig)}
	if img.RawManifest, err = json.Marshal(img.Manifest); err != nil {
		return nil, fmt.Errorf("marshal manifest: %w", err)
	}
	img.Descriptor = v1.Descriptor{
		MediaType: img.Manifest.MediaType,
		Size:      int64(len(img.RawManifest)),
		Digest:    Digest(img.RawManifest),
		Platform:  img.Config.Platform(),
	}
	return img, nil
}

// layerDescriptor translates a layer's media type to the image's family; what a base's manifest says beside
// (URLs, embedded data) is not carried over.
func layerDescriptor(l Layer, docker bool) (v1.Descriptor, error) {
	if err := CheckDigest(l.DiffID); err != nil {
		return v1.Descriptor{}, fmt.Errorf("diff id: %w", err)
	}
	if err := verifiable(l.Descriptor); err != nil {
		return v1.Descriptor{}, err
	}
	d := v1.Descriptor{MediaType: l.Descriptor.MediaType, Size: l.Descriptor.Size, Digest: l.Descriptor.Digest, Annotations: l.Descriptor.Annotations}
	family := toOCI
	if docker {
		family = toDocker
	}
	if t, ok := family[d.MediaType]; ok {
		d.MediaType = t
	}
	if !isLayer(d.MediaType) {
		return v1.Descriptor{}, fmt.Errorf("unknown media type %q", d.MediaType)
	}
	return d, nil
}

var toOCI = map[types.MediaType]types.MediaType{
	types.DockerLayer:             types.OCILayer,
	types.DockerUncompressedLayer: types.OCIUncompressedLayer,
	types.DockerForeignLayer:      types.OCIRestrictedLayer,
	DockerZstdLayer:               types.OCILayerZStd,
}

var toDocker = map[types.MediaType]types.MediaType{
	types.OCILayer:             types.DockerLayer,
	types.OCIUncompressedLayer: types.DockerUncompressedLayer,
	types.OCIRestrictedLayer:   types.DockerForeignLayer,
	types.OCILayerZStd:         DockerZstdLayer,
}

// Index makes an image index (a manifest list with Docker's media types) of manifests, in the given order.
func Index(manifests []v1.Descriptor, o AssembleOptions) ([]byte, v1.Descriptor, error) {
	idx := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: manifests, Annotations: o.Annotations}
	if o.Docker {
		idx.MediaType = types.DockerManifestList
	}
	if manifests == nil {
		idx.Manifests = []v1.Descriptor{}
	}
	raw, err := json.Marshal(idx)
	if err != nil {
		return nil, v1.Descriptor{}, fmt.Errorf("marshal index: %w", err)
	}
	return raw, v1.Descriptor{MediaType: idx.MediaType, Size: int64(len(raw)), Digest: Digest(raw)}, nil
}

// MarshalConfig writes a configuration canonically. Fields of v1 are shadowed where v1 would write a zero time
// or lacks a field: a history entry of a base without a time stays without.
func MarshalConfig(cfg *v1.ConfigFile, startInterval time.Duration) ([]byte, error) {
	doc := struct {
		*v1.ConfigFile
		Created *time.Time `json:"created,omitempty"`
		History []history  `json:"history,omitempty"`
		Config  runConfig  `json:"config"`
	}{ConfigFile: cfg, Created: timeOrNil(cfg.Created), Config: runConfig{Config: &cfg.Config}}
	for _, h := range cfg.History {
		doc.History = append(doc.History, history{timeOrNil(h.Created), h.CreatedBy, h.Author, h.Comment, h.EmptyLayer})
	}
	if hc := cfg.Config.Healthcheck; hc != nil {
		doc.Config.Healthcheck = &health{hc, startInterval}
	}
	return json.Marshal(doc)
}

type history struct {
	Created    *time.Time `json:"created,omitempty"`
	CreatedBy  string     `json:"created_by,omitempty"`
	Author     string     `json:"author,omitempty"`
	Comment    string     `json:"comment,omitempty"`
	EmptyLayer bool       `json:"empty_layer,omitempty"`
}

type runConfig struct {
	*v1.Config
	Healthcheck *health `json:"Healthcheck,omitempty"`
}

type health struct {
	*v1.HealthConfig
	StartInterval time.Duration `json:",omitempty"`
}

func timeOrNil(t v1.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t.Time
}
