// Package dag says what a build has to do, as plain data: a graph whose vertices are file-system steps.
//
// It does no I/O, reads no clock and no environment, and starts no goroutine. Whatever a step needs to know stands
// in its Op; the configuration of an image (ENV, CMD, USER ...) never passes through the graph, since lowering
// computes it. A Plan goes to JSON and back without loss: Encode and Decode, the instruction stream.
package dag

import (
	"fmt"
	"maps"
	"slices"
)

// ID names a vertex: its index in Graph.Vertices. A vertex's inputs have smaller IDs than the vertex itself, so the
// order of the slice is a topological order.
type ID int

// Empty stands where a vertex could: the empty file system, FROM scratch.
const Empty ID = -1

// A Graph is what a build has to do. Inputs come before the vertices that use them.
type Graph struct {
	Vertices []*Vertex
}

// Add appends a vertex and returns its ID.
func (g *Graph) Add(v *Vertex) ID {
	v.ID = ID(len(g.Vertices))
	g.Vertices = append(g.Vertices, v)
	return v.ID
}

// Vertex returns the vertex with the given ID.
func (g *Graph) Vertex(id ID) *Vertex { return g.Vertices[id] }

// Contexts returns the names of the build contexts that vertices take files from, sorted.
func (g *Graph) Contexts() []string {
	names := map[string]bool{}
	for _, v := range g.Vertices {
		switch op := v.Op.(type) {
		case *Copy:
			for _, s := range op.Sources {
				names[s.From.Context] = true
			}
		case *Run:
			for _, m := range op.Mounts {
				names[m.From.Context] = true
			}
		}
	}
	delete(names, "") // the files of an input
	return slices.Sorted(maps.Keys(names))
}

// A Vertex is one step. Two vertices with equal ops and equal inputs do the same work.
type Vertex struct {
	ID ID
	Op Op
	// Inputs are the vertices whose results the op reads. Ops refer to them by Ref.
	Inputs []ID
	// Pos is where the Dockerfile asks for this step; zero for steps that no line asks for.
	Pos Pos
	// Name is what people see: `RUN apt-get update`.
	Name string
	// Stage is the name of the vertex's stage, or its index as text.
	Stage string
	// Step and Steps number the vertex within its stage ("3/7"); 0 for vertices that are no Dockerfile step.
	Step  int
	Steps int
	// Platform is the platform the step runs for, "linux/amd64".
	Platform string
	// Skip are the rules whose warnings the Dockerfile silences for this step ("# check=skip="); "all" is every one.
	Skip []string
	// NoCache makes the step run although a record of it exists.
	NoCache bool
}

// Silences reports whether the Dockerfile wants no warning of a rule for this step.
func (v *Vertex) Silences(rule string) bool {
	return slices.Contains(v.Skip, rule) || slices.Contains(v.Skip, "all")
}

// A Ref points from an op to one of its vertex's inputs: an index in Vertex.Inputs, or Scratch.
type Ref int

// Scratch is the Ref of the empty file system.
const Scratch Ref = -1

// A Pos is a range of lines in a Dockerfile, counted from 1. File is empty in a zero Pos.
type Pos struct {
	File string `json:"file,omitempty"`
	Line int    `json:"line,omitempty"`
	End  int    `json:"end,omitempty"`
	// Col is the column, counted from 1; 0 means the whole line.
	Col int `json:"col,omitempty"`
}

// IsZero reports whether the position is unknown.
func (p Pos) IsZero() bool { return p.Line == 0 }

func (p Pos) String() string {
	switch {
	case p.Line == 0:
		return p.File
	case p.Col == 0:
		return fmt.Sprintf("%s:%d", p.File, p.Line)
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Col)
}
