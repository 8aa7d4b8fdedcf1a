// Package engine solves a graph: each vertex once, inputs first, from the cache if possible.
//
// It does not know what the vertices do; that is the Executor's business. It prints nothing and makes no system call.
package engine

import (
	"context"
	"fmt"
	"io"
	"time"

	"img/cache"
	"img/dag"
)

// An Executor carries out single vertices. All methods may be called from several goroutines at once.
//
// in holds the outputs of v.Inputs, in their order; dag.Empty has the output "". When ctx ends, Key and Exec return
// soon, with an error that wraps ctx.Err() or context.Cause(ctx): any other error counts as a failure of the vertex
// itself. A panic fails the vertex.
type Executor interface {
	// Key writes into h everything v's result depends on, the outputs of its inputs included.
	Key(ctx context.Context, v *dag.Vertex, in []cache.Output, h *cache.Hash) error
	// Usable reports whether a recorded result can stand for running v: what it names is there, and no better one can be had.
	Usable(ctx context.Context, v *dag.Vertex, r cache.Record) bool
	// Exec carries v out. What the step prints goes to log, which may be written to by several goroutines until Exec
	// returns.
	Exec(ctx context.Context, v *dag.Vertex, in []cache.Output, log io.Writer) (Result, error)
}

// An Acquirer is an Executor whose vertices may need something that others hold for long, such as a lock.
type Acquirer interface {
	Executor
	// Acquire waits for what v needs. It is called once v's key is locked and before v asks for a slot of Options.Jobs, so that nothing
	// waits while it holds a slot; Exec is called between Acquire and release. To be free of dead locks, an Acquirer takes what one
	// vertex needs in one order for all. note tells people what is waited for. release, which may be nil, is called once.
	Acquire(ctx context.Context, v *dag.Vertex, note func(string)) (release func(), err error)
}

// A Result is what Exec produced.
type Result struct {
	Output cache.Output
	// Tier is the sandbox tier, see cache.Record.
	Tier int
	// NoRecord keeps the result out of the cache.
	NoRecord bool
	// Warnings are surprises of the step. They are recorded, and told again when the result comes from the cache.
	Warnings []cache.Warning
}

// A State is where a vertex is on its way. Waiting, Ready and Running go upward; the others are final.
type State int

const (
	Waiting  State = iota // inputs are not all done
	Ready                 // inputs are done; the key can be computed
	Running               // Exec is under way
	Cached                // done, from a record or by an equal vertex
	Done                  // done, by running
	Failed                // Exec or Key failed
	Canceled              // another vertex failed, or the build was stopped
)

var stateNames = [...]string{"waiting", "ready", "running", "cached", "done", "failed", "canceled"}

func (s State) String() string { return stateNames[s] }

// Final reports whether a vertex stays in the state.
func (s State) Final() bool { return s >= Cached }

// An Event tells that a vertex changed state or printed something. Events of one vertex come in order. All vertices
// begin as Waiting, of which there is no event; each one that is needed ends with one event of a final state.
type Event struct {
	Vertex *dag.Vertex
	State  State
	Time   time.Time
	// Log is output of a Running vertex; nil for changes of state.
	Log []byte
	// Err is set for Failed.
	Err error
	// Key and Text, the key's text, are set from Running on.
	Key  cache.Key
	Text string
	// Output is set for Cached and Done.
	Output cache.Output
	// Cost is how long the step took: now for Done, when it was made for Cached.
	Cost time.Duration
	// Warnings are set for Cached and Done: what the step did that people might not expect.
	Warnings []cache.Warning
	// Note is a remark about the vertex: "waiting for another build that makes this step".
	Note string
}

// Options of Solve.
type Options struct {
	// Cache holds records; nil runs everything.
	Cache *cache.Store
	// Jobs bounds how many vertices run at once; 0 means all that are ready.
	Jobs int
	// Observe is called for each event, from one goroutine at a time. While it does not return, the build waits.
	Observe func(Event)
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Boot is the boot id noted in records.
	Boot string
	// Refuse, if set, is asked about each result with warnings, made or cached; its error fails the vertex. The result stays recorded,
	// warnings and all, so the next build refuses it as well. It is called from the goroutine of Solve.
	Refuse func(*dag.Vertex, []cache.Warning) error
}

// A VertexError is the failure of one vertex. If several fail, the first in the graph's order is reported.
type VertexError struct {
	Vertex *dag.Vertex
	Err    error
}

func (e *VertexError) Error() string { return e.Vertex.Name + ": " + e.Err.Error() }
func (e *VertexError) Unwrap() error { return e.Err }

// A PanicError is a panic of an Executor: a bug, not a failure of the step.
type PanicError struct {
	Value any
	// Stack is where it happened, as runtime/debug.Stack has it; "" if unknown.
	Stack string
}

func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// Step identifies a vertex across builds, for cache.Record.Step: stage, platform and name.
func Step(v *dag.Vertex) string { return v.Stage + " " + v.Platform + " " + v.Name }

// Solve makes the targets, and what they need, and nothing else. It returns the output of every vertex it made, also
// beside an error: what was made before it is there and recorded.
//
// The first vertex that fails ends the others, with the failure as context.Cause, and gives a *VertexError. When ctx
// ends, so do they, and its cause is returned. In every case all goroutines are waited for.
func Solve(ctx context.Context, g *dag.Graph, targets []dag.ID, x Executor, o Options) (map[dag.ID]cache.Output, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	s, err := newSolver(g, targets, x, o)
	if err != nil {
		return nil, err
	}
	err = s.run(ctx)
	return s.outputs(), err
}
