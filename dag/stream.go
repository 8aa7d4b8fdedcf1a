package dag

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"
)

// The instruction stream is a Plan as JSON lines: a header, then a line for each vertex, inputs first. docs/instruction-stream.md tells
// every field.
//
//	{"step":"PLAN","command":[],"env":{},"cache":true,"format":1,"targets":[{"platform":"linux/amd64","files":1,"manifest":3}]}
//	{"step":"IMAGE","id":0,"command":[],"env":{},"cache":true,"inputs":[],"chainID":"sha256:…","ref":"busybox",…}
//	{"step":"RUN","id":1,"command":["/bin/sh","-c","make"],"env":{"PATH":"/bin"},"cache":true,"inputs":[0],"base":0,"dir":"/",…}
//
// The fields of a step are those of its op, by their JSON names; where an op has a Ref, the stream has the vertex's id, and -1 for Scratch.

// StreamFormat is the version of the stream that Encode writes and Decode reads. A new field that older readers may not overlook, or another
// meaning of one, raises it.
const StreamFormat = 1

// Limits of a stream.
const (
	MaxStream         = 128 << 20 // bytes in all
	maxStreamLine     = 32 << 20  // bytes in a line: the largest Dockerfile as one heredoc, escaped
	maxStreamMemory   = 256 << 20 // what the vertices take, about, in bytes
	maxStreamVertices = 400_000   // an instruction of the longest Dockerfile makes up to three, and a layer
	maxStreamTargets  = 256
	maxStreamDepth    = 64 // arrays and objects in each other
)

// A Plan is a graph and what it is for.
type Plan struct {
	Graph *Graph
	// Targets are the results, one for each platform, in the order in which they were asked for.
	Targets []Target
	// Index is the vertex that makes the index of the targets' images; Empty where there is none.
	Index ID
}

// A Target is what a plan makes for one platform.
type Target struct {
	// Platform is normalised: "linux/arm64".
	Platform string
	// Files is the vertex that holds the file system; Empty for an empty one.
	Files ID
	// Manifest is the vertex that makes the image; Empty where none is wanted.
	Manifest ID
	// Config is the image's configuration, canonical JSON without rootfs, as in Manifest.
	Config []byte
}

// A StreamError is a mistake in an instruction stream, with its place.
type StreamError struct {
	Pos Pos
	// Path is the field: "mounts[1].target"; "" for the whole line.
	Path string
	Err  error
	// Word is what was written for one of the Known words, where that is the mistake.
	Word  string
	Known []string
}

func (e *StreamError) Error() string { return e.Pos.String() + ": " + e.Text() }
func (e *StreamError) Unwrap() error { return e.Err }

// Text is the error without its place.
func (e *StreamError) Text() string {
	if e.Path == "" {
		return e.Err.Error()
	}
	return e.Path + ": " + e.Err.Error()
}

// planStep is the step of the header.
const planStep = "PLAN"

// streamHeader is the first line. Its command, env and cache are there for readers that take all lines alike.
type streamHeader struct {
	Step     string            `json:"step"`
	Command  []string          `json:"command" stream:"optional"`
	Env      map[string]string `json:"env" stream:"optional"`
	Cache    bool              `json:"cache" stream:"optional"`
	Format   int               `json:"format"`
	Contexts []string          `json:"contexts" stream:"optional"`
	Targets  []streamTarget    `json:"targets"`
	Index    ID                `json:"index" stream:"scratch"`
}

// streamTarget is a Target. The configuration stands in the manifest if there is one.
type streamTarget struct {
	Platform string `json:"platform"`
	Files    ID     `json:"files"`
	Manifest ID     `json:"manifest" stream:"scratch"`
	Config   []byte `json:"config,omitempty" stream:"json"`
}

// A vertex' line has streamHead, the fields of the op, and streamTail.
type streamHead struct {
	Step     string            `json:"step"`
	ID       ID                `json:"id"`
	Command  []string          `json:"command" stream:"optional"`
	Env      map[string]string `json:"env" stream:"optional"`
	EnvOrder []string          `json:"envOrder,omitempty"`
	Cache    bool              `json:"cache" stream:"optional"`
	Inputs   []ID              `json:"inputs" stream:"optional"`
}

type streamTail struct {
	Name     string   `json:"name"`
	Stage    string   `json:"stage,omitempty"`
	Number   int      `json:"number,omitempty"`
	Total    int      `json:"total,omitempty"`
	Platform string   `json:"platform,omitempty"`
	Skip     []string `json:"skipChecks,omitempty"`
	Pos      Pos      `json:"pos,omitempty"`
}

// newOp makes an op of a kind, nil if there is none.
func newOp(kind string) Op {
	for _, op := range []Op{&Image{}, &Run{}, &Copy{}, &HTTP{}, &Git{}, &Mkdir{}, &Merge{}, &Pack{}, &Manifest{}, &Index{}} {
		if op.Kind() == kind {
			return op
		}
	}
	return nil
}

var stepNames = strings.Fields("IMAGE RUN COPY HTTP GIT MKDIR MERGE PACK MANIFEST INDEX")

// Encode writes a plan as an instruction stream. Proxy variables are not in it: they are the caller's, not the plan's.
func Encode(w io.Writer, p *Plan) error {
	buf := bufio.NewWriter(w)
	total := 0
	line := func(what string, e *encoder) error {
		e.b.WriteByte('\n')
		if total += e.b.Len(); e.err == nil && (e.b.Len() > maxStreamLine || total > MaxStream) {
			e.err = fmt.Errorf("an instruction stream holds %d MiB, and %d MiB in a line", MaxStream>>20, maxStreamLine>>20)
		}
		if e.err != nil {
			return fmt.Errorf("%s: %w", what, e.err)
		}
		_, err := buf.Write(e.b.Bytes())
		return err
	}
	if err := line("plan", encodeHeader(p)); err != nil {
		return err
	}
	for _, v := range p.Graph.Vertices {
		if err := line(strings.TrimPrefix(v.Pos.String()+": "+v.Name, ": "), encodeVertex(v)); err != nil {
			return err
		}
	}
	return buf.Flush()
}

func encodeHeader(p *Plan) *encoder {
	h := streamHeader{Step: planStep, Cache: true, Format: StreamFormat, Contexts: p.Graph.Contexts(), Index: p.Index}
	for _, t := range p.Targets {
		out := streamTarget(t)
		if t.Manifest != Empty && bytes.Equal(p.Graph.Vertex(t.Manifest).Op.(*Manifest).Config, t.Config) {
			out.Config = nil
		}
		h.Targets = append(h.Targets, out)
	}
	e := &encoder{}
	e.object(reflect.ValueOf(h))
	return e
}

func encodeVertex(v *Vertex) *encoder {
	head := streamHead{Step: strings.ToUpper(v.Op.Kind()), ID: v.ID, Cache: !v.NoCache, Inputs: v.Inputs}
	tail := streamTail{v.Name, v.Stage, v.Step, v.Steps, v.Platform, v.Skip, v.Pos}
	e := &encoder{inputs: v.Inputs}
	if op, ok := v.Op.(*Run); ok {
		head.Command = op.Args
		if head.Env, head.EnvOrder, e.err = envObject(op.Env); e.err != nil {
			return e
		}
	}
	e.object(reflect.ValueOf(head), reflect.ValueOf(v.Op).Elem(), reflect.ValueOf(tail))
	return e
}

// envObject makes an object of an environment. JSON's objects have no order, so that any other than that of the names is told apart.
func envObject(list []string) (env map[string]string, order []string, err error) {
	env = map[string]string{}
	for _, kv := range list {
		name, value, ok := strings.Cut(kv, "=")
		if _, twice := env[name]; twice || !ok || !utf8.ValidString(name) {
			return nil, nil, fmt.Errorf("the environment cannot be written as an object: %q", kv)
		}
		env[name] = value
		order = append(order, name)
	}
	if slices.IsSorted(order) {
		order = nil
	}
	return env, order, nil
}

// envList is the reverse of envObject.
func envList(env map[string]string, order []string) (list []string, err error) {
	if order == nil {
		order = slices.Sorted(maps.Keys(env))
	}
	seen := map[string]bool{}
	for i, name := range order {
		value, ok := env[name]
		switch {
		case !ok:
			return nil, at(fmt.Sprintf("envOrder[%d]", i), "env has no %q", name)
		case seen[name]:
			return nil, at(fmt.Sprintf("envOrder[%d]", i), "%q is there twice", name)
		case strings.Contains(name, "="):
			return nil, at("env", "the name %q has a =", name)
		}
		seen[name] = true
		list = append(list, name+"="+value)
	}
	if len(order) != len(env) {
		return nil, at("envOrder", "it has %d names, env has %d", len(order), len(env))
	}
	return list, nil
}

// Decode reads an instruction stream; name is what positions call it. What it returns, lowering a Dockerfile could have returned: Check
// has seen every vertex. Mistakes are *StreamErrors.
func Decode(name string, r io.Reader) (*Plan, error) {
	s := streamReader{name: name, r: bufio.NewReader(r), checker: newChecker()}
	header, err := s.header()
	if err != nil {
		return nil, err
	}
	for {
		line, err := s.line()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if err := s.vertex(line); err != nil {
			return nil, s.fail(s.at, line, err)
		}
	}
	if err := s.outcome(header); err != nil {
		return nil, s.fail(1, s.first, err)
	}
	return s.plan, nil
}

// A streamReader reads a stream line by line.
type streamReader struct {
	name string
	r    *bufio.Reader
	// at is the number of the line that was read last, read how many bytes there were, spent what the vertices take.
	at, read, spent int
	first           []byte
	*checker
}

// line returns the next line without its end; io.EOF after the last.
func (s *streamReader) line() ([]byte, error) {
	var line []byte
	for {
		part, err := s.r.ReadSlice('\n')
		s.read += len(part)
		if len(line)+len(part) > maxStreamLine+1 || s.read > MaxStream {
			s.at++
			return nil, s.fail(s.at, nil, fmt.Errorf("a stream may have %d MiB, and %d MiB in a line", MaxStream>>20, maxStreamLine>>20))
		}
		line = append(line, part...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(line) > 0, err == nil:
			s.at++
			return bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r")), nil
		default:
			return nil, err
		}
	}
}

// fail gives an error its place in a line.
func (s *streamReader) fail(number int, line []byte, err error) error {
	e := &StreamError{Pos: Pos{File: s.name, Line: number}, Err: err}
	var f *fieldError
	if !errors.As(err, &f) {
		return e
	}
	e.Path, e.Err, e.Word, e.Known = f.path, f.err, f.word, f.known
	offset := f.offset
	if offset < 0 {
		offset = locate(line, f.path)
	}
	e.Pos.Col = utf8.RuneCount(line[:min(offset, len(line))]) + 1
	return e
}

// header reads the first line.
func (s *streamReader) header() (*streamHeader, error) {
	line, err := s.line()
	if errors.Is(err, io.EOF) {
		return nil, s.fail(1, nil, errors.New("the stream is empty: its first line is a PLAN"))
	}
	if err != nil {
		return nil, err
	}
	s.first = line
	h := &streamHeader{Cache: true, Index: Empty}
	if err := s.decodeHeader(line, h); err != nil {
		return nil, s.fail(1, line, err)
	}
	for _, c := range h.Contexts {
		s.contexts[c] = true
	}
	return h, nil
}

func (s *streamReader) decodeHeader(line []byte, h *streamHeader) error {
	// The version goes first: of another one, nothing else may be known.
	var about struct {
		Step   string
		Format int
	}
	d := decoder{src: line, spent: &s.spent}
	if err := d.peek(map[string]any{"step": &about.Step, "format": &about.Format}); err != nil {
		return err
	}
	switch {
	case about.Step != planStep:
		return at("step", "the first line is a PLAN, not %q", about.Step)
	case about.Format != StreamFormat:
		return at("format", "the stream has format %d; this img reads %d", about.Format, StreamFormat)
	}
	if err := d.line(planStep, reflect.ValueOf(h).Elem()); err != nil {
		return err
	}
	switch {
	case len(h.Command) > 0:
		return at("command", "a PLAN has none")
	case len(h.Env) > 0:
		return at("env", "a PLAN has none")
	case !h.Cache:
		return at("cache", "a PLAN is no step; say it of the steps")
	}
	return nil
}

// vertex reads a line after the first.
func (s *streamReader) vertex(line []byte) error {
	v, err := decodeVertex(&decoder{src: line, spent: &s.spent})
	if err != nil {
		return err
	}
	return s.checker.vertex(v)
}

// decodeVertex reads a line as it is. Its Refs are ids.
func decodeVertex(d *decoder) (*Vertex, error) {
	var step string
	if err := d.peek(map[string]any{"step": &step}); err != nil {
		return nil, err
	}
	op := newOp(strings.ToLower(step))
	if op == nil || step != strings.ToUpper(step) {
		return nil, &fieldError{path: "step", offset: -1, err: fmt.Errorf("unknown step %q", step), word: step, known: stepNames}
	}
	head, tail := streamHead{Cache: true}, streamTail{}
	if err := d.line(step, reflect.ValueOf(&head).Elem(), reflect.ValueOf(op).Elem(), reflect.ValueOf(&tail).Elem()); err != nil {
		return nil, err
	}
	v := &Vertex{ID: head.ID, Op: op, Inputs: head.Inputs, NoCache: !head.Cache, Name: tail.Name, Stage: tail.Stage, Step: tail.Number, Steps: tail.Total,
		Platform: tail.Platform, Skip: tail.Skip, Pos: tail.Pos}
	switch run, ok := op.(*Run); {
	case ok:
		env, err := envList(head.Env, head.EnvOrder)
		if err != nil {
			return nil, err
		}
		run.Args, run.Env = head.Command, env
	case len(head.Command) > 0:
		return nil, at("command", "only RUN has a command")
	case len(head.Env) > 0 || len(head.EnvOrder) > 0:
		return nil, at("env", "only RUN has an environment")
	}
	return v, nil
}

// outcome reads what the header says of vertices that came after it.
func (s *streamReader) outcome(h *streamHeader) error {
	p := s.plan
	p.Index = h.Index
	for i, t := range h.Targets {
		if i == maxStreamTargets {
			return at(fmt.Sprintf("targets[%d]", i), "a plan has at most %d targets", maxStreamTargets)
		}
		out := Target(t)
		if m, ok := p.op(t.Manifest).(*Manifest); ok && t.Config == nil {
			out.Config = m.Config
		}
		p.Targets = append(p.Targets, out)
	}
	return s.checker.outcome()
}
