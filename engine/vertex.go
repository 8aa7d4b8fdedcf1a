package engine

import (
	"context"
	"runtime/debug"
	"sync"

	"img/cache"
)

// What runs in a vertex's goroutines. Nothing here writes a node: findings go back as reports.

// A check is a node whose key is to be computed, and the outputs of its inputs.
type check struct {
	n  *node
	in []cache.Output
}

// startCheckers starts the goroutines that work on toCheck until it is closed. They stay, instead of one for each
// node, since a new goroutine's stack is copied several times before it holds a key's computation.
func (s *solver) startCheckers(ctx context.Context) *sync.WaitGroup {
	wg := new(sync.WaitGroup)
	for range cap(s.toCheck) {
		wg.Go(func() {
			for c := range s.toCheck {
				s.reports <- s.check(ctx, c.n, c.in)
			}
		})
	}
	return wg
}

// check computes a node's key and looks for a record of it.
func (s *solver) check(ctx context.Context, n *node, in []cache.Output) report {
	var h cache.Hash
	if err := guard(func() error { return s.x.Key(ctx, n.v, in, &h) }); err != nil {
		return report{n: n, what: failed, err: err}
	}
	r := report{n: n, what: missed, key: h.Key(), text: h.Text()}
	s.lookup(ctx, &r)
	return r
}

// lookup makes the report a hit when there is a usable record of its key.
func (s *solver) lookup(ctx context.Context, r *report) {
	if !s.reads(r.n) {
		return
	}
	rec, ok := s.o.Cache.Get(r.key)
	if !ok {
		return
	}
	err := guard(func() error { ok = s.x.Usable(ctx, r.n.v, rec); return nil })
	switch {
	case err != nil:
		r.what, r.err = failed, err
	case ok:
		r.what, r.rec = hit, rec
	}
}

// reads reports whether a record may stand for running the node.
func (s *solver) reads(n *node) bool { return s.o.Cache != nil && !n.v.NoCache }

// produce runs a node, unless another process made a record since it was checked.
func (s *solver) produce(ctx context.Context, n *node, in []cache.Output) report {
	if s.reads(n) {
		defer s.lock(ctx, n)()
		again := report{n: n, key: n.key}
		if s.lookup(ctx, &again); again.what != missed {
			return again
		}
	}
	release, err := s.acquire(ctx, n)
	if err != nil {
		return report{n: n, what: failed, err: err}
	}
	defer release()
	s.reports <- report{n: n, what: asks}
	select {
	case <-n.slot:
		return s.exec(ctx, n, in)
	case <-ctx.Done():
		return report{n: n, what: failed, err: context.Cause(ctx)}
	}
}

// lock locks the node's key against other processes. Without the lock work may be done twice, but nothing else goes
// wrong: that is worth a remark, not the build. When ctx ends, produce notices.
func (s *solver) lock(ctx context.Context, n *node) (unlock func()) {
	unlock, err := s.o.Cache.Lock(ctx, n.key, func() {
		s.note(n, Ready, "waiting for another build that makes this step")
	})
	if err != nil {
		if ctx.Err() == nil {
			s.note(n, Ready, err.Error())
		}
		return func() {}
	}
	return unlock
}

// acquire waits for what the node needs besides its key and a slot.
func (s *solver) acquire(ctx context.Context, n *node) (release func(), err error) {
	if a, ok := s.x.(Acquirer); ok {
		err = guard(func() error {
			release, err = a.Acquire(ctx, n.v, func(text string) { s.note(n, Ready, text) })
			return err
		})
	}
	if release == nil {
		release = func() {}
	}
	return release, err
}

// exec carries the node out and records the result.
func (s *solver) exec(ctx context.Context, n *node, in []cache.Output) report {
	var result Result
	log := &logWriter{n: n, to: &s.observer}
	begin := s.now()
	err := guard(func() (err error) {
		defer log.close()
		result, err = s.x.Exec(ctx, n.v, in, log)
		return err
	})
	if err != nil {
		return report{n: n, what: failed, err: err}
	}
	rec := cache.Record{
		Key:    n.key,
		Output: result.Output,
		Text:   n.text,
		Step:   Step(n.v),
		Cost:   s.now().Sub(begin),
		Tier:   result.Tier,
		Boot:   s.o.Boot,
		Made:   s.now(),

		Warnings: result.Warnings,
	}
	if s.o.Cache != nil && !result.NoRecord {
		if err := s.o.Cache.Put(rec); err != nil { // the result is there; it is found next time or made again
			s.note(n, Running, err.Error())
		}
	}
	return report{n: n, what: made, rec: rec}
}

// guard turns a panic into an error.
func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &PanicError{Value: p, Stack: string(debug.Stack())}
		}
	}()
	return f()
}
