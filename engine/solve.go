package engine

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"

	"img/cache"
	"img/dag"
)

// A solver runs one loop, in Solve's goroutine, that alone reads and writes nodes. The strategy:
//
//  1. A vertex whose inputs are done is ready. Ready vertices are checked, lowest ID first, by a few goroutines that
//     live as long as the loop: the key is computed and a record looked for. A usable one is the result.
//  2. Otherwise the vertex is made by a goroutine of its own, unless one with the same key is being made or was made:
//     then it takes that one's result.
//  3. The maker locks the key against other processes and looks again. If it must run, it acquires what the vertex
//     needs (Acquirer) and then asks for a slot; slots are given to the lowest ID that asks. So whoever holds a slot
//     holds all its locks, and no slot waits for a lock.
//  4. Goroutines tell what they found by reports. When one fails, the others are ended and nothing new is begun.
type solver struct {
	x Executor
	o Options
	observer

	nodes   []*node // by ID; nil where nothing needs the vertex
	reports chan report
	toCheck chan check // read by checkers
	end     context.CancelCauseFunc

	ready  ids // Ready, and not being checked yet
	asking ids // want a slot
	checks int // nodes in step 1
	makers int // goroutines in step 3
	slots  int // slots given
	byKey  map[cache.Key]*node
	left   int // nodes that have no output yet
}

// A node is a vertex on its way.
type node struct {
	id      int
	v       *dag.Vertex
	state   State
	pending int   // inputs that are not done, counted as often as they are used
	users   []int // IDs of vertices that wait for this one, once per use
	key     cache.Key
	text    string
	slot    chan struct{} // gets its one value when the node may run
	holds   bool          // a slot
	equal   []*node       // have the same key and take this one's result
	out     cache.Output
	err     error
	// warnings belong to out.
	warnings []cache.Warning
}

// A report is what a goroutine found out about a node.
type report struct {
	n    *node
	what finding
	key  cache.Key
	text string
	rec  cache.Record // for hit and made: the result
	err  error        // for failed
}

type finding int

const (
	missed finding = iota // checked: has to be made
	asks                  // locked, wants a slot; the only report that is not the goroutine's last
	hit                   // checked or made: there is a record
	made                  // Exec returned
	failed
)

func newSolver(g *dag.Graph, targets []dag.ID, x Executor, o Options) (*solver, error) {
	checkers := 2 * runtime.GOMAXPROCS(0) // keys are made of file reads and hashing
	s := &solver{
		x:        x,
		o:        o,
		observer: observer{observe: o.Observe, now: o.Now},
		nodes:    make([]*node, len(g.Vertices)),
		reports:  make(chan report),
		toCheck:  make(chan check, checkers),
		byKey:    map[cache.Key]*node{},
	}
	for _, id := range targets {
		if id < dag.Empty || int(id) >= len(g.Vertices) {
			return nil, fmt.Errorf("target %d: the graph has %d vertices", id, len(g.Vertices))
		}
		s.need(g, id)
	}
	for id := len(s.nodes) - 1; id >= 0; id-- { // users before inputs
		if s.nodes[id] != nil {
			if err := s.link(g, id); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

func (s *solver) need(g *dag.Graph, id dag.ID) *node {
	if id == dag.Empty {
		return nil
	}
	if s.nodes[id] == nil {
		s.left++
		s.nodes[id] = &node{id: int(id), v: g.Vertex(id), slot: make(chan struct{}, 1)}
	}
	return s.nodes[id]
}

// link makes a node wait for its inputs.
func (s *solver) link(g *dag.Graph, id int) error {
	n := s.nodes[id]
	for _, in := range n.v.Inputs {
		if in < dag.Empty || int(in) >= id {
			return fmt.Errorf("vertex %d (%s): input %d does not come before it", id, n.v.Name, in)
		}
		if input := s.need(g, in); input != nil {
			input.users = append(input.users, id)
			n.pending++
		}
	}
	return nil
}

// run is the loop.
func (s *solver) run(outer context.Context) error {
	ctx, end := context.WithCancelCause(outer)
	defer end(nil)
	s.end = end
	checkers := s.startCheckers(ctx)
	defer checkers.Wait()
	defer close(s.toCheck)
	for id, n := range s.nodes {
		if n != nil && n.pending == 0 {
			s.set(id, Ready, Event{})
		}
	}
	for {
		if ctx.Err() == nil {
			s.begin(ctx)
		}
		if s.checks+s.makers == 0 {
			break
		}
		s.handle(ctx, <-s.reports)
	}
	if s.left == 0 {
		return nil
	}
	for id, n := range s.nodes {
		if n != nil && !n.state.Final() {
			s.set(id, Canceled, Event{})
		}
	}
	return s.failure(ctx)
}

// begin starts what can be started.
func (s *solver) begin(ctx context.Context) {
	for s.ready.Len() > 0 && s.checks < cap(s.toCheck) {
		n := s.nodes[heap.Pop(&s.ready).(int)]
		s.checks++
		s.toCheck <- check{n, s.inputs(n)} // never blocks: as many fit as may be under way
	}
	for s.asking.Len() > 0 && (s.o.Jobs <= 0 || s.slots < s.o.Jobs) {
		id := heap.Pop(&s.asking).(int)
		n := s.nodes[id]
		if n.state.Final() { // gave up while asking
			continue
		}
		s.slots++
		n.holds = true
		s.set(id, Running, Event{})
		n.slot <- struct{}{}
	}
}

// inputs returns the outputs of a node's inputs.
func (s *solver) inputs(n *node) []cache.Output {
	in := make([]cache.Output, len(n.v.Inputs))
	for i, id := range n.v.Inputs {
		if id != dag.Empty {
			in[i] = s.nodes[id].out
		}
	}
	return in
}

// handle takes a report.
func (s *solver) handle(ctx context.Context, r report) {
	n := r.n
	if r.what == asks {
		heap.Push(&s.asking, n.id)
		return
	}
	s.finished(r)
	switch r.what {
	case missed:
		if ctx.Err() == nil {
			s.make(ctx, n)
		}
	case hit:
		s.succeed(ctx, n, Cached, resultOf(r.rec))
	case made:
		s.succeed(ctx, n, Done, resultOf(r.rec))
	case failed:
		s.fail(ctx, n, r.err)
	}
}

// finished counts a goroutine out. A check is told from a maker by the key, which it reports.
func (s *solver) finished(r report) {
	n := r.n
	if n.key == "" {
		s.checks--
		n.key, n.text = r.key, r.text
		return
	}
	s.makers--
	if n.holds {
		n.holds = false
		s.slots--
	}
}

// make begins a maker, or joins the node to an equal one.
func (s *solver) make(ctx context.Context, n *node) {
	twin := s.byKey[n.key]
	switch {
	// A record does for the twin, or may yet do while it is on its way; not for n.
	case twin == nil, n.v.NoCache && !twin.v.NoCache && twin.state != Done:
		s.byKey[n.key] = n
		s.makers++
		in := s.inputs(n)
		go func() { s.reports <- s.produce(ctx, n, in) }()
	case twin.state.Final(): // and no failure: that would have ended ctx
		s.succeed(ctx, n, Cached, sameAs(twin))
	default:
		twin.equal = append(twin.equal, n)
	}
}

func resultOf(r cache.Record) Event {
	return Event{Output: r.Output, Cost: r.Cost, Warnings: r.Warnings}
}

func sameAs(n *node) Event {
	return Event{Output: n.out, Warnings: n.warnings, Note: "same as " + n.v.Name}
}

// succeed gives a node its output, and its equals.
func (s *solver) succeed(ctx context.Context, n *node, state State, e Event) {
	s.settle(ctx, n, state, e)
	for _, other := range n.equal {
		s.settle(ctx, other, Cached, sameAs(n))
	}
	n.equal = nil
}

// settle makes a result final, unless the caller refuses its warnings.
func (s *solver) settle(ctx context.Context, n *node, state State, e Event) {
	n.out, n.warnings = e.Output, e.Warnings
	if s.o.Refuse != nil && len(e.Warnings) > 0 {
		if err := s.o.Refuse(n.v, e.Warnings); err != nil {
			s.fail(ctx, n, err)
			return
		}
	}
	s.set(n.id, state, e)
}

// fail notes a failure and ends the rest. An error that only passes on the end of ctx is no failure.
func (s *solver) fail(ctx context.Context, n *node, err error) {
	if ctx.Err() != nil && (errors.Is(err, ctx.Err()) || errors.Is(err, context.Cause(ctx))) {
		s.set(n.id, Canceled, Event{})
		return
	}
	n.err = &VertexError{Vertex: n.v, Err: err}
	s.set(n.id, Failed, Event{Err: err})
	s.end(n.err)
}

// set performs every transition: it alone writes states, and it keeps the queues.
func (s *solver) set(id int, state State, e Event) {
	n := s.nodes[id]
	n.state = state
	e.Vertex, e.State, e.Key, e.Text = n.v, state, n.key, n.text
	s.emit(e)
	switch state {
	case Ready:
		heap.Push(&s.ready, id)
	case Cached, Done:
		s.left--
		for _, user := range n.users {
			u := s.nodes[user]
			if u.pending--; u.pending == 0 {
				s.set(user, Ready, Event{}) // goes no deeper: Ready sets nothing
			}
		}
	}
}

// failure returns what Solve has to report: the first failure in the graph's order, unless the caller's ctx ended
// before there was one.
func (s *solver) failure(ctx context.Context) error {
	cause := context.Cause(ctx)
	if ve := (*VertexError)(nil); !errors.As(cause, &ve) {
		return cause
	}
	i := slices.IndexFunc(s.nodes, func(n *node) bool { return n != nil && n.err != nil })
	if i < 0 {
		return cause // the caller's cause is a VertexError itself
	}
	return s.nodes[i].err
}

func (s *solver) outputs() map[dag.ID]cache.Output {
	outs := map[dag.ID]cache.Output{}
	for id, n := range s.nodes {
		if n != nil && (n.state == Cached || n.state == Done) {
			outs[dag.ID(id)] = n.out
		}
	}
	return outs
}

// ids is a heap of vertex IDs, lowest first.
type ids []int

func (h ids) Len() int           { return len(h) }
func (h ids) Less(i, j int) bool { return h[i] < h[j] }
func (h ids) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *ids) Push(x any)        { *h = append(*h, x.(int)) }
func (h *ids) Pop() any {
	last := len(*h) - 1
	id := (*h)[last]
	*h = (*h)[:last]
	return id
}
