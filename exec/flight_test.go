package exec

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

var errWork = errors.New("work failed")

// Work is done once, whoever asks; only an attempt that was stopped is made again, by one who still wants it.
func TestFlight(t *testing.T) {
	for name, c := range map[string]struct {
		err   error
		panic bool
		stop  bool // the first caller's context ends while it works
		want  int32
		gets  error
	}{
		"good":    {want: 1},
		"bad":     {err: errWork, want: 1, gets: errWork},
		"stopped": {err: errWork, stop: true, want: 2},
		"panic":   {panic: true, want: 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var f flight
				var runs atomic.Int32
				ctx, cancel := context.WithCancel(t.Context())
				release := make(chan struct{})
				var all sync.WaitGroup
				all.Go(func() {
					defer func() { recover() }()
					f.do(ctx, func(context.Context) error {
						runs.Add(1)
						<-release
						if c.panic {
							panic("work")
						}
						return c.err
					})
				})
				synctest.Wait()
				for range 3 {
					all.Go(func() {
						err := f.do(t.Context(), func(context.Context) error { runs.Add(1); return nil })
						if !errors.Is(err, c.gets) {
							t.Errorf("a waiting caller got %v", err)
						}
					})
				}
				synctest.Wait()
				if c.stop {
					cancel()
				}
				close(release)
				all.Wait()
				cancel()
				if runs.Load() != c.want {
					t.Errorf("the work was done %d times, not %d", runs.Load(), c.want)
				}
			})
		})
	}
}

// Who waits for another's work is not kept when its own context ends.
func TestFlightWaitEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flight
		release := make(chan struct{})
		go f.do(t.Context(), func(context.Context) error { <-release; return nil })
		synctest.Wait()
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errWork)
		if err := f.do(ctx, nil); err != errWork {
			t.Errorf("got %v", err)
		}
		close(release)
	})
}
