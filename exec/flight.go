package exec

import (
	"context"
	"sync"
)

// A flight is work that is done once for all who ask. Where it failed because the one who did it was told to stop, the next one who
// asks, or waits already, does it again; any other result stays.
type flight struct {
	mu  sync.Mutex
	now *attempt
}

type attempt struct {
	done    chan struct{}
	err     error
	stopped bool
}

// do does the work, or waits for who does it.
func (f *flight) do(ctx context.Context, work func(context.Context) error) error {
	for {
		a, mine := f.join()
		if mine {
			return f.run(ctx, a, work)
		}
		select {
		case <-a.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if !a.stopped {
			return a.err
		}
	}
}

func (f *flight) join() (a *attempt, mine bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.now == nil {
		f.now, mine = &attempt{done: make(chan struct{}), stopped: true}, true
	}
	return f.now, mine
}

func (f *flight) run(ctx context.Context, a *attempt, work func(context.Context) error) error {
	defer close(a.done) // also after a panic, which leaves it stopped
	defer func() {
		if a.stopped {
			f.mu.Lock()
			f.now = nil
			f.mu.Unlock()
		}
	}()
	err := work(ctx)
	a.err, a.stopped = err, err != nil && ctx.Err() != nil
	return err
}
