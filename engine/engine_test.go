package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"img/cache"
	"img/dag"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("ENGINE_TEST_BUILD"); dir != "" {
		os.Exit(buildInChild(dir))
	}
	goleak.VerifyTestMain(m)
}

// A fake is told by a vertex's name what to do: the first word is the vertex, the others say
//
//	key=K    the key is K alone, whatever the inputs
//	out=O    the output is O; otherwise it names the vertex and its inputs' outputs
//	fail badkey panic badpanic    how it goes wrong
//	wait     Exec ends with ctx
//	norecord unusable print
type fake struct {
	mu   sync.Mutex
	runs map[string]int
	// during, if given, is called within Exec.
	during func(ctx context.Context, v *dag.Vertex) error
}

// has returns the value of a word of v's name, and whether it is there.
func has(v *dag.Vertex, word string) (string, bool) {
	for _, w := range strings.Fields(v.Name)[1:] {
		if name, value, _ := strings.Cut(w, "="); name == word {
			return value, true
		}
	}
	return "", false
}

func is(v *dag.Vertex, word string) bool { _, ok := has(v, word); return ok }

func label(v *dag.Vertex) string { return strings.Fields(v.Name)[0] }

func (f *fake) Key(ctx context.Context, v *dag.Vertex, in []cache.Output, h *cache.Hash) error {
	if is(v, "badkey") {
		return errors.New("no key")
	}
	if is(v, "badpanic") {
		panic("key")
	}
	if k, ok := has(v, "key"); ok {
		h.Line("key", k)
		return nil
	}
	h.Line("step", label(v))
	h.Line("in", in)
	return nil
}

func (f *fake) Usable(_ context.Context, v *dag.Vertex, _ cache.Record) bool {
	return !is(v, "unusable")
}

func (f *fake) Exec(ctx context.Context, v *dag.Vertex, in []cache.Output, log io.Writer) (Result, error) {
	f.mu.Lock()
	if f.runs == nil {
		f.runs = map[string]int{}
	}
	f.runs[label(v)]++
	f.mu.Unlock()
	if f.during != nil {
		if err := f.during(ctx, v); err != nil {
			return Result{}, err
		}
	}
	switch {
	case is(v, "fail"):
		return Result{}, errors.New("exit status 1")
	case is(v, "panic"):
		panic("exec")
	case is(v, "wait"):
		<-ctx.Done()
		return Result{}, fmt.Errorf("run: %w", context.Cause(ctx))
	case is(v, "print"):
		fmt.Fprint(log, "one\ntwo")
	}
	var warnings []cache.Warning
	if w, ok := has(v, "warn"); ok {
		warnings = []cache.Warning{{Rule: w, Text: "of " + label(v)}}
	}
	return Result{Output: outputOf(v, in), NoRecord: is(v, "norecord"), Warnings: warnings}, nil
}

func outputOf(v *dag.Vertex, in []cache.Output) cache.Output {
	if o, ok := has(v, "out"); ok {
		return cache.Output(o)
	}
	h := new(cache.Hash) // keeps outputs short in long chains
	h.Line("out", in)
	return cache.Output(label(v) + "." + string(h.Key()[:8]))
}

// graph reads "b a key=1 nocache": vertex b with input a; the words go into its name.
func graph(t testing.TB, text string) *dag.Graph {
	g, byName := &dag.Graph{}, map[string]dag.ID{"scratch": dag.Empty}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		v := &dag.Vertex{}
		name := words[:1]
		for _, w := range words[1:] {
			if id, ok := byName[w]; ok {
				v.Inputs = append(v.Inputs, id)
			} else if w == "nocache" {
				v.NoCache = true
			} else {
				name = append(name, w)
			}
		}
		v.Name = strings.Join(name, " ")
		byName[words[0]] = g.Add(v)
	}
	return g
}

// states collects the last state of each vertex, and fails the test when events come in a wrong order.
type states struct {
	t     testing.TB
	last  map[dag.ID]State
	notes []string
}

func (s *states) observe(e Event) {
	last := s.last[e.Vertex.ID]
	switch {
	case last.Final():
		s.t.Errorf("%s: %v after %v", e.Vertex.Name, e.State, last)
	case e.Log != nil || e.Note != "" && !e.State.Final():
		if e.State != last {
			s.t.Errorf("%s: words while %v, state %v", e.Vertex.Name, last, e.State)
		}
	case e.State <= last:
		s.t.Errorf("%s: %v after %v", e.Vertex.Name, e.State, last)
	}
	s.last[e.Vertex.ID] = e.State
	if e.Note != "" {
		s.notes = append(s.notes, label(e.Vertex)+": "+e.Note)
	}
}

// solve returns "a done, b cached" or the states and the error's first line after a "|".
func solve(t testing.TB, ctx context.Context, g *dag.Graph, targets []dag.ID, x Executor, o Options) string {
	s := &states{t: t, last: map[dag.ID]State{}}
	o.Observe = s.observe
	out, err := Solve(ctx, g, targets, x, o)
	var parts []string
	for _, v := range g.Vertices {
		state, seen := s.last[v.ID]
		if !seen {
			continue
		}
		parts = append(parts, label(v)+" "+state.String())
		if _, made := out[v.ID]; made != (state == Done || state == Cached) {
			t.Errorf("%s is %v, has output: %v", v.Name, state, made)
		}
	}
	text := strings.Join(parts, ", ")
	if err != nil {
		first, _, _ := strings.Cut(err.Error(), "\n")
		text += " | " + first
	}
	return text
}

func last(g *dag.Graph) []dag.ID { return []dag.ID{dag.ID(len(g.Vertices) - 1)} }

// TestSolve builds one graph after the other with one cache; the last vertex of each is the target.
func TestSolve(t *testing.T) {
	type build struct{ graph, want string }
	for name, builds := range map[string][]build{
		"a second build is cached": {
			{"a\nb a\nc b", "a done, b done, c done"},
			{"a\nb a\nc b", "a cached, b cached, c cached"},
		},
		"only what is needed is made": {{"a\nb\nc a\nd c", "a done, c done, d done"}},
		"a change runs what comes after": {
			{"a\nb a\nc b", "a done, b done, c done"},
			{"a\nB a\nc B", "a cached, B done, c done"},
		},
		"equal output cuts off": {
			{"a out=1\nb a\nc b", "a done, b done, c done"},
			{"A out=1\nb A\nc b", "A done, b cached, c cached"},
		},
		"no-cache runs in spite of a record and writes one": {
			{"a out=1\nb a", "a done, b done"},
			{"a out=2 nocache\nb a", "a done, b done"},
			{"a\nb a", "a cached, b cached"},
		},
		"no-cache twin of a cached step runs": {
			{"a key=k", "a done"},
			{"a key=k\nb key=k nocache\nc a b", "a cached, b done, c done"},
		},
		"an unusable record is none": {
			{"a", "a done"},
			{"a unusable", "a done"},
			{"a", "a cached"},
		},
		"norecord keeps the result out": {
			{"a norecord", "a done"},
			{"a norecord", "a done"},
		},
		"equal keys run once": {
			{"a\nb a key=k\nc a key=k\nd b c", "a done, b done, c cached, d done"},
		},
		"equal keys run once, one after the other": {
			{"a key=k norecord\nb a\nc b key=k\nd c", "a done, b done, c cached, d done"},
		},
		"scratch and repeated inputs": {{"a scratch\nb a a scratch\nc b a b", "a done, b done, c done"}},
		"a failure ends the rest": {
			{"a\nb a fail\nc a wait\nd b c", "a done, b failed, c canceled, d canceled | b fail: exit status 1"},
			{"a\nb a\nc a\nd b c", "a cached, b done, c done, d done"},
		},
		"a bad key fails":       {{"a badkey\nb a", "a failed, b canceled | a badkey: no key"}},
		"a panic fails":         {{"a panic\nb a", "a failed, b canceled | a panic: panic: exec"}},
		"a panic in Key fails":  {{"a badpanic\nb a", "a failed, b canceled | a badpanic: panic: key"}},
		"equals of a failure":   {{"a key=k fail\nb key=k fail\nc a b", "a failed, b canceled, c canceled | a key=k fail: exit status 1"}},
		"nothing to do":         {{"a\nscratch", "scratch done"}},
		"printing is forwarded": {{"a print", "a done"}},
	} {
		for _, jobs := range []int{0, 1} {
			if jobs == 1 && strings.Contains(name, "rest") {
				continue // c may get the only slot before b, and waits for b to fail
			}
			t.Run(fmt.Sprintf("%s, %d jobs", name, jobs), func(t *testing.T) {
				store := open(t)
				for _, b := range builds {
					g := graph(t, b.graph)
					if got := solve(t, t.Context(), g, last(g), &fake{}, Options{Cache: store, Jobs: jobs}); got != swap(got, b.want) {
						t.Errorf("build of\n%s\nis   %s\nwant %s", b.graph, got, b.want)
					}
				}
			})
		}
	}
}

// swap returns want with b's and c's states exchanged if that is what was got: of equal vertices either may run.
func swap(got, want string) string {
	other := strings.NewReplacer("b done, c cached", "b cached, c done", "a failed, b canceled", "a canceled, b failed").Replace(want)
	head, tail, _ := strings.Cut(other, " | a ")
	if tail != "" && strings.HasPrefix(got, "a canceled") {
		other = head + " | b " + tail
	}
	if got == other {
		return other
	}
	return want
}

func open(t testing.TB) *cache.Store {
	t.Helper()
	s, err := cache.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSolveRefuses(t *testing.T) {
	cyclic := &dag.Graph{}
	cyclic.Add(&dag.Vertex{Name: "a", Inputs: []dag.ID{0}})
	for _, c := range []struct {
		g      *dag.Graph
		target dag.ID
		want   string
	}{
		{cyclic, 0, "vertex 0 (a): input 0 does not come before it"},
		{&dag.Graph{}, 0, "target 0: the graph has 0 vertices"},
		{&dag.Graph{}, -2, "target -2: the graph has 0 vertices"},
	} {
		if _, err := Solve(t.Context(), c.g, []dag.ID{c.target}, &fake{}, Options{}); err == nil || err.Error() != c.want {
			t.Errorf("error %v, want %s", err, c.want)
		}
	}
	if out, err := Solve(t.Context(), cyclic, []dag.ID{dag.Empty}, &fake{}, Options{}); err != nil || len(out) > 0 {
		t.Errorf("target scratch: %v, %v", out, err)
	}
}

// together returns a function that returns when n goroutines are in it.
func together(n int) func() {
	var wg sync.WaitGroup
	wg.Add(n)
	return func() { wg.Done(); wg.Wait() }
}

// b fails while a runs; a then does what the case says.
func TestFailureWhileRunning(t *testing.T) {
	for _, c := range []struct {
		name string
		a    func(ctx context.Context) error
		want string
	}{
		{"fails as well: the first in order is reported",
			func(context.Context) error { return errors.New("exit status a") },
			"a failed, b failed, c canceled | a: exit status a"},
		{"passes on the cause",
			func(ctx context.Context) error { return fmt.Errorf("run: %w", context.Cause(ctx)) },
			"a canceled, b failed, c canceled | b fail: exit status 1"},
		{"passes on ctx.Err",
			func(ctx context.Context) error { return fmt.Errorf("run: %w", ctx.Err()) },
			"a canceled, b failed, c canceled | b fail: exit status 1"},
		{"ends well all the same",
			func(context.Context) error { return nil },
			"a done, b failed, c canceled | b fail: exit status 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := graph(t, "a\nb fail\nc a b")
			meet := together(2)
			x := &fake{during: func(ctx context.Context, v *dag.Vertex) error {
				meet()
				if label(v) != "a" {
					return nil
				}
				<-ctx.Done()
				if ve := (*VertexError)(nil); !errors.As(context.Cause(ctx), &ve) || label(ve.Vertex) != "b" {
					t.Errorf("cause %v", context.Cause(ctx))
				}
				return c.a(ctx)
			}}
			if got := solve(t, t.Context(), g, last(g), x, Options{}); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestCancelFromOutside(t *testing.T) {
	stop := errors.New("interrupted")
	for _, jobs := range []int{0, 1, 2} {
		ctx, cancel := context.WithCancelCause(t.Context())
		g := graph(t, "a wait\nb wait\nc wait\nd a b c")
		x := &fake{during: func(context.Context, *dag.Vertex) error { cancel(stop); return nil }}
		_, err := Solve(ctx, g, last(g), x, Options{Jobs: jobs, Cache: open(t)})
		if err != stop {
			t.Errorf("%d jobs: error %v, want %v", jobs, err, stop)
		}
		if jobs > 0 && len(x.runs) > jobs {
			t.Errorf("%d jobs: %d vertices ran", jobs, len(x.runs))
		}
	}
}

func TestJobs(t *testing.T) {
	var text strings.Builder
	for i := range 20 {
		fmt.Fprintf(&text, "v%d\n", i)
	}
	g := graph(t, text.String())
	var targets []dag.ID
	for _, v := range g.Vertices {
		targets = append(targets, v.ID)
	}
	var mu sync.Mutex
	var now, most int
	x := &fake{during: func(context.Context, *dag.Vertex) error {
		mu.Lock()
		now++
		most = max(most, now)
		mu.Unlock()
		time.Sleep(time.Millisecond)
		mu.Lock()
		now--
		mu.Unlock()
		return nil
	}}
	if _, err := Solve(t.Context(), g, targets, x, Options{Jobs: 3, Cache: open(t)}); err != nil || most > 3 {
		t.Errorf("%d at once, error %v", most, err)
	}
	all := make(chan struct{}) // closed when all run at once
	x = &fake{during: func(ctx context.Context, v *dag.Vertex) error {
		mu.Lock()
		if now++; now == len(targets) {
			close(all)
		}
		mu.Unlock()
		select {
		case <-all:
			return nil
		case <-time.After(10 * time.Second):
			return errors.New("waits for the others in vain")
		}
	}}
	if _, err := Solve(t.Context(), g, targets, x, Options{}); err != nil {
		t.Error(err)
	}
}

// A locker has a lock for each word "lock=L" of a vertex's name.
type locker struct {
	fake
	mu   sync.Mutex
	free map[string]chan struct{}
	// waits, if not nil, gets a word from whoever must wait for a lock.
	waits chan string
}

func (l *locker) Acquire(ctx context.Context, v *dag.Vertex, note func(string)) (func(), error) {
	if is(v, "badlock") {
		return nil, errors.New("no lock")
	}
	name, ok := has(v, "lock")
	if !ok {
		return nil, nil
	}
	l.mu.Lock()
	if l.free == nil {
		l.free = map[string]chan struct{}{}
	}
	if l.free[name] == nil {
		l.free[name] = make(chan struct{}, 1)
	}
	lock := l.free[name]
	l.mu.Unlock()
	select {
	case lock <- struct{}{}:
		return func() { <-lock }, nil
	default:
		note("waits for " + name)
		if l.waits != nil {
			l.waits <- name
		}
	}
	select {
	case lock <- struct{}{}:
		return func() { <-lock }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Who waits for a lock has no slot: with two slots, a vertex that needs no lock runs while one has the lock and another waits for it.
func TestAcquireBeforeSlot(t *testing.T) {
	other := make(chan struct{})
	var mu sync.Mutex
	holders, most := 0, 0
	x := &locker{waits: make(chan string, 1)}
	x.during = func(ctx context.Context, v *dag.Vertex) error {
		if label(v) == "c" {
			select {
			case <-x.waits:
			case <-time.After(10 * time.Second):
				return errors.New("nobody waits for the lock")
			}
			close(other)
			return nil
		}
		mu.Lock()
		holders++
		most = max(most, holders)
		mu.Unlock()
		defer func() { mu.Lock(); holders--; mu.Unlock() }()
		select {
		case <-other:
			return nil
		case <-time.After(10 * time.Second):
			return errors.New("c has no slot")
		}
	}
	g := graph(t, "a lock=x\nb lock=x\nc\nd a b c lock=x")
	s := &states{t: t, last: map[dag.ID]State{}}
	if _, err := Solve(t.Context(), g, last(g), x, Options{Jobs: 2, Cache: open(t), Observe: s.observe}); err != nil || most != 1 {
		t.Errorf("%d at once, error %v", most, err)
	}
	if len(s.notes) != 1 || !strings.HasSuffix(s.notes[0], ": waits for x") {
		t.Errorf("notes %q", s.notes)
	}
	if len(x.free["x"]) > 0 {
		t.Error("the lock is held after the build")
	}
}

// A lock that cannot be had fails the vertex, and one that is waited for does not outlast a failure.
func TestAcquireFails(t *testing.T) {
	g := graph(t, "a badlock")
	if got := solve(t, t.Context(), g, last(g), &locker{}, Options{Cache: open(t)}); got != "a failed | a badlock: no lock" {
		t.Error(got)
	}
	x := &locker{}
	x.during = func(ctx context.Context, v *dag.Vertex) error {
		if is(v, "fail") {
			return nil
		}
		<-ctx.Done()
		return context.Cause(ctx)
	}
	g = graph(t, "a lock=x\nb lock=x\nc fail\nd a b c")
	got := solve(t, t.Context(), g, last(g), x, Options{})
	if !strings.HasPrefix(got, "a canceled, b canceled, c failed, d canceled | c fail") || len(x.free["x"]) > 0 {
		t.Errorf("%s, %d locks held", got, len(x.free["x"]))
	}
}

func TestEvents(t *testing.T) {
	g := graph(t, "a print\nb a")
	tick := time.Unix(0, 0)
	now := func() time.Time { tick = tick.Add(time.Second); return tick }
	store := open(t)
	var got []string
	observe := func(e Event) {
		got = append(got, fmt.Sprintf("%s %v log=%q out=%v key=%v text=%v cost=%v",
			label(e.Vertex), e.State, e.Log, e.Output != "", e.Key != "", e.Text != "", e.Cost))
	}
	for range 2 {
		if _, err := Solve(t.Context(), g, last(g), &fake{}, Options{Cache: store, Observe: observe, Jobs: 1, Now: now}); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		`a ready log="" out=false key=false text=false cost=0s`,
		`a running log="" out=false key=true text=true cost=0s`,
		`a running log="one\ntwo" out=false key=true text=false cost=0s`,
		`a done log="" out=true key=true text=true cost=2s`,
		`b ready log="" out=false key=false text=false cost=0s`,
		`b running log="" out=false key=true text=true cost=0s`,
		`b done log="" out=true key=true text=true cost=1s`,
		`a ready log="" out=false key=false text=false cost=0s`,
		`a cached log="" out=true key=true text=true cost=2s`,
		`b ready log="" out=false key=false text=false cost=0s`,
		`b cached log="" out=true key=true text=true cost=1s`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A step's process may outlive Exec; what it still prints goes nowhere.
func TestLateLog(t *testing.T) {
	w := &logWriter{n: &node{}, to: &observer{observe: func(Event) { t.Error("late event") }, now: time.Now}}
	w.close()
	if _, err := w.Write([]byte("x")); err != io.ErrClosedPipe {
		t.Errorf("error %v", err)
	}
}

// Two stores on one directory stand for two processes: flock excludes by open file.
func TestSingleFlightAcrossStores(t *testing.T) {
	dir := t.TempDir()
	g := graph(t, "a\nb a")
	x := &fake{during: func(context.Context, *dag.Vertex) error { time.Sleep(50 * time.Millisecond); return nil }}
	var wg sync.WaitGroup
	for range 4 {
		store, err := cache.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if _, err := Solve(t.Context(), g, last(g), x, Options{Cache: store, Jobs: 1}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if x.runs["a"] != 1 || x.runs["b"] != 1 {
		t.Errorf("runs: %v", x.runs)
	}
	locks, err := os.ReadDir(filepath.Join(dir, "locks"))
	if err != nil || len(locks) > 0 {
		t.Errorf("locks left: %v, %v", locks, err)
	}
}

// A warning is told by the step that runs, by the record afterwards and by an equal step; who refuses it is asked each time.
func TestWarnings(t *testing.T) {
	store, err := cache.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	g := graph(t, "a\nb a key=1 warn=R\nc a key=1 warn=R\nd b c")
	solve := func(o Options) (said []string, err error) {
		o.Cache = store
		o.Observe = func(e Event) {
			for _, w := range e.Warnings {
				said = append(said, fmt.Sprint(e.State, " ", w.Rule))
			}
		}
		_, err = Solve(t.Context(), g, last(g), &fake{}, o)
		slices.Sort(said)
		return said, err
	}
	refuse := Options{Refuse: func(v *dag.Vertex, w []cache.Warning) error { return errors.New("refused " + w[0].Rule) }}
	for round, want := range []string{"cached R; done R", "cached R; cached R"} {
		said, err := solve(Options{})
		if got := strings.Join(said, "; "); got != want || err != nil {
			t.Errorf("round %d: %s, %v, want %s", round, got, err, want)
		}
		var failed *VertexError
		if said, err := solve(refuse); !errors.As(err, &failed) || failed.Err.Error() != "refused R" {
			t.Errorf("round %d: refused %v, %v", round, said, err)
		}
	}
	fresh := Options{Refuse: refuse.Refuse}
	if store, err = cache.Open(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds a record
		if _, err := solve(fresh); err == nil {
			t.Error("a refused step passes")
		}
	}
}

// While another process holds the key's lock, people are told, and the build can be stopped.
func TestWaitForAnotherBuild(t *testing.T) {
	dir := t.TempDir()
	mine, _ := cache.Open(dir)
	theirs, _ := cache.Open(dir)
	g := graph(t, "a key=k")
	var h cache.Hash
	h.Line("key", "k")
	unlock, err := theirs.Lock(t.Context(), h.Key(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("interrupted")
	s := &states{t: t, last: map[dag.ID]State{}}
	observe := func(e Event) {
		s.observe(e)
		if e.Note != "" {
			cancel(stop)
		}
	}
	if _, err := Solve(ctx, g, last(g), &fake{}, Options{Cache: mine, Observe: observe}); err != stop {
		t.Errorf("error %v", err)
	}
	if want := []string{"a: waiting for another build that makes this step"}; !slices.Equal(s.notes, want) {
		t.Errorf("notes %q", s.notes)
	}
}

// A step that must run does so although its twin, which waits for another build, then finds that one's record.
func TestNoCacheTwinOfWaiter(t *testing.T) {
	dir := t.TempDir()
	mine, _ := cache.Open(dir)
	theirs, _ := cache.Open(dir)
	var h cache.Hash
	h.Line("key", "k")
	unlock, err := theirs.Lock(t.Context(), h.Key(), nil)
	if err != nil {
		t.Fatal(err)
	}
	g := graph(t, "x\na key=k out=1\nb x key=k out=1 nocache\nc a b")
	s := &states{t: t, last: map[dag.ID]State{}}
	waits := make(chan struct{})
	x := &fake{during: func(_ context.Context, v *dag.Vertex) error {
		if label(v) == "x" { // which is before b
			<-waits
		}
		return nil
	}}
	observe := func(e Event) {
		s.observe(e)
		if e.Note == "waiting for another build that makes this step" {
			close(waits)
			time.AfterFunc(50*time.Millisecond, func() { // by then b has met a
				if err := theirs.Put(cache.Record{Key: h.Key(), Output: "1", Text: h.Text()}); err != nil {
					t.Error(err)
				}
				unlock()
			})
		}
	}
	if _, err := Solve(t.Context(), g, last(g), x, Options{Cache: mine, Observe: observe}); err != nil {
		t.Fatal(err)
	}
	if s.last[2] != Done || x.runs["b"] != 1 {
		t.Errorf("b is %v, ran %d times", s.last[2], x.runs["b"])
	}
}

// Real processes run a step once between them: each run adds a line to a file.
func TestSingleFlightAcrossProcesses(t *testing.T) {
	dir := t.TempDir()
	var children []*exec.Cmd
	for range 3 {
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), "ENGINE_TEST_BUILD="+dir)
		c.Stderr = os.Stderr
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		children = append(children, c)
	}
	for _, c := range children {
		if err := c.Wait(); err != nil {
			t.Error(err)
		}
	}
	if got, err := os.ReadFile(filepath.Join(dir, "runs")); string(got) != "a\n" {
		t.Errorf("runs: %q, %v", got, err)
	}
}

// buildInChild is a process of TestSingleFlightAcrossProcesses.
func buildInChild(dir string) int {
	store, err := cache.Open(filepath.Join(dir, "keys"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	x := &fake{during: func(_ context.Context, v *dag.Vertex) error {
		f, err := os.OpenFile(filepath.Join(dir, "runs"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		defer f.Close()
		time.Sleep(100 * time.Millisecond)
		_, err = fmt.Fprintln(f, label(v))
		return err
	}}
	g := &dag.Graph{}
	g.Add(&dag.Vertex{Name: "a"})
	if _, err := Solve(context.Background(), g, last(g), x, Options{Cache: store}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// A cache that cannot be written costs the records, not the build.
func TestBrokenCache(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	store, err := cache.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	s := &states{t: t, last: map[dag.ID]State{}}
	g := graph(t, "a")
	out, err := Solve(t.Context(), g, last(g), &fake{}, Options{Cache: store, Observe: s.observe})
	if err != nil || len(out) != 1 {
		t.Errorf("output %v, error %v", out, err)
	}
	if len(s.notes) != 2 || !strings.Contains(s.notes[0], "lock key") || !strings.Contains(s.notes[1], "record key") {
		t.Errorf("notes %q", s.notes)
	}
}

// Long chains and wide graphs are solved without recursion, in linear time.
func TestLarge(t *testing.T) {
	const n = 10_000
	chain, wide := &dag.Graph{}, &dag.Graph{}
	top := &dag.Vertex{Name: "top"}
	for i := range n {
		v := &dag.Vertex{Name: fmt.Sprintf("v%d", i)}
		if i > 0 {
			v.Inputs = []dag.ID{dag.ID(i - 1)}
		}
		chain.Add(v)
		top.Inputs = append(top.Inputs, wide.Add(&dag.Vertex{Name: fmt.Sprintf("v%d", i)}))
	}
	wide.Add(top)
	for name, g := range map[string]*dag.Graph{"chain": chain, "wide": wide} {
		begin := time.Now()
		out, err := Solve(t.Context(), g, last(g), &fake{}, Options{})
		if err != nil || len(out) != len(g.Vertices) {
			t.Errorf("%s: %d outputs, error %v", name, len(out), err)
		}
		t.Logf("%s of %d: %v", name, n, time.Since(begin))
	}
}

// Random graphs: each vertex once, inputs first, the outputs that a simple loop gives, the second time all cached.
func TestRandomGraphs(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		sub, err := os.MkdirTemp(dir, "")
		if err != nil {
			t.Fatal(err)
		}
		store, err := cache.Open(sub)
		if err != nil {
			t.Fatal(err)
		}
		g := drawGraph(t)
		targets := []dag.ID{rapid.Custom(func(t *rapid.T) dag.ID { return drawID(t, len(g.Vertices)) }).Draw(t, "target")}
		o := Options{Cache: store, Jobs: rapid.IntRange(0, 3).Draw(t, "jobs")}
		want := plainly(g, targets)
		x := &fake{}
		for range 2 {
			out, err := Solve(context.Background(), g, targets, x, o)
			if err != nil {
				t.Fatal(err)
			}
			if len(out) != len(want) {
				t.Fatalf("%d outputs, want %d", len(out), len(want))
			}
			for id, o := range want {
				if out[id] != o {
					t.Fatalf("vertex %d: %s, want %s", id, out[id], o)
				}
			}
		}
		for name, n := range x.runs {
			if n != 1 {
				t.Fatalf("%s ran %d times", name, n)
			}
		}
	})
}

func drawGraph(t *rapid.T) *dag.Graph {
	g := &dag.Graph{}
	for i := range rapid.IntRange(1, 12).Draw(t, "vertices") {
		v := &dag.Vertex{Name: fmt.Sprintf("v%d", i)}
		if i > 0 {
			v.Inputs = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) dag.ID { return drawID(t, i) }), 0, 3).Draw(t, "inputs")
		}
		if rapid.Bool().Draw(t, "same output") {
			v.Name += " out=same"
		}
		g.Add(v)
	}
	return g
}

func drawID(t *rapid.T, n int) dag.ID { return dag.ID(rapid.IntRange(0, n-1).Draw(t, "id")) }

// plainly solves a graph as simply as can be.
func plainly(g *dag.Graph, targets []dag.ID) map[dag.ID]cache.Output {
	need := map[dag.ID]bool{}
	for _, id := range targets {
		need[id] = true
	}
	for _, v := range slices.Backward(g.Vertices) {
		for _, in := range v.Inputs {
			need[in] = need[in] || need[v.ID]
		}
	}
	out := map[dag.ID]cache.Output{}
	for _, v := range g.Vertices {
		if !need[v.ID] {
			continue
		}
		in := make([]cache.Output, len(v.Inputs))
		for i, id := range v.Inputs {
			in[i] = out[id]
		}
		out[v.ID] = outputOf(v, in)
	}
	return out
}

// Random failures: the reported one failed on its own, and nothing before it in the graph's order did.
func TestRandomFailures(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := drawGraph(t)
		for _, v := range g.Vertices {
			if rapid.IntRange(0, 3).Draw(t, "fails") == 0 {
				v.Name += " fail"
			}
		}
		failed := map[dag.ID]bool{}
		target := dag.ID(len(g.Vertices) - 1)
		_, err := Solve(context.Background(), g, []dag.ID{target}, &fake{}, Options{
			Jobs:    rapid.IntRange(0, 3).Draw(t, "jobs"),
			Observe: func(e Event) { failed[e.Vertex.ID] = failed[e.Vertex.ID] || e.State == Failed },
		})
		var ve *VertexError
		if !errors.As(err, &ve) {
			for id, f := range failed {
				if f || is(g.Vertex(id), "fail") {
					t.Fatalf("error %v, but vertex %d is to fail", err, id)
				}
			}
			return
		}
		for id, f := range failed {
			if f && id < ve.Vertex.ID {
				t.Fatalf("reported %d, but %d failed", ve.Vertex.ID, id)
			}
		}
	})
}

// keyed computes no keys of its own worth measuring.
type keyed struct{ fake }

func (*keyed) Key(_ context.Context, v *dag.Vertex, in []cache.Output, h *cache.Hash) error {
	h.Line("step", v.Name)
	return nil
}

func BenchmarkCached300(b *testing.B) {
	g := &dag.Graph{}
	for i := range 300 {
		v := &dag.Vertex{Name: fmt.Sprintf("v%d", i)}
		if i > 0 {
			v.Inputs = []dag.ID{dag.ID(i - 1)}
		}
		g.Add(v)
	}
	o := Options{Cache: open(b)}
	for b.Loop() {
		if _, err := Solve(b.Context(), g, last(g), &keyed{}, o); err != nil {
			b.Fatal(err)
		}
	}
}
