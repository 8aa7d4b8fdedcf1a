package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// DockerZstdLayer is what some tools call a zstd layer in a Docker manifest; no specification has it.
const DockerZstdLayer types.MediaType = "application/vnd.docker.image.rootfs.diff.tar.zstd"

func isLayer(t types.MediaType) bool { return t.IsLayer() || t == DockerZstdLayer }

// Kind returns the media type of a manifest or index: the one it states, else the one its fields tell.
// What could be read both ways is refused (CVE-2021-41190), as is Docker's schema 1.
func Kind(raw []byte) (types.MediaType, error) {
	var doc struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     types.MediaType `json:"mediaType"`
		Config        json.RawMessage `json:"config"`
		Layers        json.RawMessage `json:"layers"`
		Manifests     json.RawMessage `json:"manifests"`
		FSLayers      json.RawMessage `json:"fsLayers"`
	}
	if err := decode(raw, &doc, true); err != nil {
		return "", err
	}
	if doc.MediaType.IsSchema1() && doc.MediaType != types.OCIManifestSchema1 || doc.SchemaVersion == 1 || doc.FSLayers != nil {
		return "", errors.New("the manifest is of schema 1, and schema 1 is not supported: push the image again with a newer tool")
	}
	if doc.SchemaVersion != 2 {
		return "", fmt.Errorf("schemaVersion is %d, not 2", doc.SchemaVersion)
	}
	isImage, isIndex := doc.Config != nil || doc.Layers != nil, doc.Manifests != nil
	switch {
	case isImage && isIndex:
		return "", errors.New("document is both a manifest and an index")
	case !isImage && !isIndex:
		return "", errors.New("document is neither a manifest nor an index")
	case doc.MediaType == "" && isImage:
		return types.OCIManifestSchema1, nil
	case doc.MediaType == "" && isIndex:
		return types.OCIImageIndex, nil
	case isImage != doc.MediaType.IsImage() || isIndex != doc.MediaType.IsIndex():
		return "", fmt.Errorf("fields do not fit media type %q", doc.MediaType)
	}
	return doc.MediaType, nil
}

// ParseManifest reads a manifest of an image or another artifact.
func ParseManifest(raw []byte) (*v1.Manifest, error) {
	kind, err := Kind(raw)
	if err != nil {
		return nil, err
	}
	if !kind.IsImage() {
		return nil, fmt.Errorf("media type %q is not a manifest's", kind)
	}
	m := new(v1.Manifest)
	if err := json.Unmarshal(raw, m); err != nil {
		return nil, err
	}
	for i, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if err := verifiable(d); err != nil {
			return nil, fmt.Errorf("descriptor %d: %w", i, err)
		}
	}
	return m, nil
}

// ParseIndex reads an index (manifest list).
func ParseIndex(raw []byte) (*v1.IndexManifest, error) {
	kind, err := Kind(raw)
	if err != nil {
		return nil, err
	}
	if !kind.IsIndex() {
		return nil, fmt.Errorf("media type %q is not an index's", kind)
	}
	m := new(v1.IndexManifest)
	if err := json.Unmarshal(raw, m); err != nil {
		return nil, err
	}
	if len(m.Manifests) > MaxDescriptors {
		return nil, fmt.Errorf("%d descriptors, limit is %d", len(m.Manifests), MaxDescriptors)
	}
	for i, d := range m.Manifests {
		if err := verifiable(d); err != nil {
			return nil, fmt.Errorf("descriptor %d: %w", i, err)
		}
	}
	return m, nil
}

// ParseConfig reads an image configuration, and HEALTHCHECK's start interval, for which v1 has no field.
func ParseConfig(raw []byte) (*v1.ConfigFile, time.Duration, error) {
	cfg := new(v1.ConfigFile)
	if err := decode(raw, cfg, false); err != nil {
		return nil, 0, err
	}
	var extra struct {
		Config struct {
			Healthcheck struct{ StartInterval time.Duration }
		} `json:"config"`
	}
	if err := json.Unmarshal(raw, &extra); err != nil {
		return nil, 0, err
	}
	return cfg, extra.Config.Healthcheck.StartInterval, nil
}

// decode unmarshals one JSON object that no other reader can understand differently: encoding/json alone takes the last
// of equal keys, ignores case, and other languages do not.
func decode(raw []byte, v any, manifest bool) error {
	if err := checkKeys(raw, manifest); err != nil {
		return err
	}
	return json.Unmarshal(raw, v)
}

// reserved are the words of manifests that may not appear in another case.
var reserved = []string{
	"schemaVersion", "mediaType", "config", "layers", "manifests", "fsLayers", "annotations", "subject", "artifactType",
	"size", "digest", "urls", "data", "platform", "architecture", "os", "variant",
}

// A level is an object or array that is being read.
type level struct {
	keys map[string]bool // nil in an array
	free bool            // keys are the user's own words (annotations)
	name string          // the key that was read last; its value comes next
	open bool            // name's value has not come
}

func checkKeys(raw []byte, manifest bool) error {
	if !json.Valid(raw) { // limits the depth as well
		return errors.New("not a JSON document")
	}
	if !bytes.HasPrefix(bytes.TrimLeft(raw, " \t\r\n"), []byte("{")) {
		return errors.New("not a JSON object")
	}
	var stack []level
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	for {
		tok, err := dec.Token()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		var top *level
		if len(stack) > 0 {
			top = &stack[len(stack)-1]
		}
		switch t := tok.(type) {
		case json.Delim:
			if t == '}' || t == ']' {
				stack = stack[:len(stack)-1]
				continue
			}
			next := level{}
			if t == '{' {
				next.keys = map[string]bool{}
			}
			if top != nil {
				next.free = top.free || top.name == "annotations"
				top.open = false
			}
			stack = append(stack, next)
		case string:
			if top.keys == nil || top.open {
				top.open = false
				continue
			}
			if err := top.key(t, manifest); err != nil {
				return err
			}
		default:
			top.open = false
		}
	}
}

func (l *level) key(name string, manifest bool) error {
	if l.keys[name] {
		return fmt.Errorf("key %q appears twice", name)
	}
	l.keys[name], l.name, l.open = true, name, true
	if !manifest || l.free {
		return nil
	}
	for _, word := range reserved {
		if name != word && strings.EqualFold(name, word) {
			return fmt.Errorf("key %q should be %q", name, word)
		}
	}
	return nil
}
