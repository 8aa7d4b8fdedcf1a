package dockerfile

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"img/dag"
)

// Merge makes one plan of plans that the same Dockerfile gives for several platforms. What is the same for some of them (equal op, inputs
// and platform: a stage FROM --platform=$BUILDPLATFORM) is there once. If the plans make images, so does an index of them.
func Merge(plans []*Plan, o Annotations) (*Plan, error) {
	m := merger{out: &Plan{Plan: dag.Plan{Graph: &dag.Graph{}, Index: dag.Empty}, texts: map[dag.ID]stepText{}}, known: map[string]dag.ID{}, warned: map[Warning]bool{}}
	for _, p := range plans {
		if err := m.add(p); err != nil {
			return nil, err
		}
	}
	m.index(o)
	return m.out, nil
}

type merger struct {
	out    *Plan
	known  map[string]dag.ID
	warned map[Warning]bool
}

func (m *merger) add(p *Plan) error {
	ids := make([]dag.ID, len(p.Graph.Vertices))
	at := func(id dag.ID) dag.ID {
		if id == dag.Empty {
			return id
		}
		return ids[id]
	}
	for i, v := range p.Graph.Vertices {
		v := *v
		v.Inputs = slices.Clone(v.Inputs)
		for j, id := range v.Inputs {
			v.Inputs[j] = at(id)
		}
		same, err := identity(&v)
		if err != nil {
			return err
		}
		id, ok := m.known[same]
		if !ok {
			id = m.out.Graph.Add(&v)
			m.known[same] = id
			if text, ok := p.texts[dag.ID(i)]; ok {
				m.out.texts[id] = text
			}
		}
		ids[i] = id
	}
	for _, t := range p.Targets {
		t.Files, t.Manifest = at(t.Files), at(t.Manifest)
		m.out.Targets = append(m.out.Targets, t)
	}
	for _, w := range p.Warnings {
		if !m.warned[w] {
			m.warned[w] = true
			m.out.Warnings = append(m.out.Warnings, w)
		}
	}
	return nil
}

// identity is the same text for vertices that do the same. The proxy variables are not in it: they are the same for the whole build.
func identity(v *dag.Vertex) (string, error) {
	op, err := json.Marshal(v.Op)
	if err != nil {
		return "", fmt.Errorf("merge %s: %w", v.Name, err)
	}
	return fmt.Sprintf("%s %q %t %v %s", v.Op.Kind(), v.Platform, v.NoCache, v.Inputs, op), nil
}

// index adds the Index over the images of all targets.
func (m *merger) index(a Annotations) {
	op := &dag.Index{Annotations: a.of(IndexAnnotation, ""), Descriptor: a.of(IndexDescriptorAnnotation, "")}
	v := &dag.Vertex{Op: op, Name: "index"}
	in := inputs{v}
	for _, t := range m.out.Targets {
		if t.Manifest == dag.Empty {
			return
		}
		manifest := m.out.Graph.Vertex(t.Manifest)
		op.Docker, v.Stage = manifest.Op.(*dag.Manifest).Docker, manifest.Stage
		op.Images = append(op.Images, dag.IndexImage{Manifest: in.ref(t.Manifest), Platform: t.Platform})
	}
	m.out.Index = m.out.Graph.Add(v)
}

// Places of an annotation.
const (
	ManifestAnnotation           = "manifest"
	IndexAnnotation              = "index"
	ManifestDescriptorAnnotation = "manifest-descriptor"
	IndexDescriptorAnnotation    = "index-descriptor"
)

// An Annotation is one --annotation.
type Annotation struct {
	// Place is one of the places above; Platform is normalised, "" for every one.
	Place, Platform string
	Key, Value      string
}

// Annotations are those of a build, in order: a later one wins, but one for a platform always wins over one for all.
type Annotations []Annotation

// Index reports whether some of them need an index.
func (a Annotations) Index() bool {
	return slices.ContainsFunc(a, func(x Annotation) bool { return x.Place == IndexAnnotation || x.Place == IndexDescriptorAnnotation })
}

// of are the annotations of a place for a platform; nil for none.
func (a Annotations) of(place, platform string) map[string]string {
	all, own := map[string]string{}, map[string]string{}
	for _, x := range a {
		switch {
		case x.Place != place:
		case x.Platform == "" || place == IndexAnnotation || place == IndexDescriptorAnnotation:
			all[x.Key] = x.Value
		case x.Platform == platform:
			own[x.Key] = x.Value
		}
	}
	if maps.Copy(all, own); len(all) == 0 {
		return nil
	}
	return all
}
