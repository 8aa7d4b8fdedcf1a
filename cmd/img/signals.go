package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// An interrupted is the cause of a context that a signal ended.
type interrupted struct{ signal syscall.Signal }

func (e interrupted) Error() string { return "interrupted (" + e.signal.String() + ")" }
func (e interrupted) code() int     { return 128 + int(e.signal) }

// patience is how long things may take to end after the first signal: less than the 10 s that users are promised.
const patience = 9 * time.Second

// withSignals returns a context that the first SIGINT or SIGTERM cancels, so that steps end and things are tidied. The
// second ends the process at once, and so does the end of our patience; whatever that leaves behind, the store is right and
// the inner process dies with us.
func withSignals(parent context.Context, stderr io.Writer) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals, done := make(chan os.Signal, 2), make(chan struct{})
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		var first interrupted
		select {
		case <-done:
			return
		case s := <-signals:
			first = interrupted{s.(syscall.Signal)}
		}
		fmt.Fprintln(stderr, "img: stopping; the same signal again stops at once")
		cancel(first)
		select {
		case <-done:
		case s := <-signals:
			os.Exit(interrupted{s.(syscall.Signal)}.code())
		case <-time.After(patience):
			fmt.Fprintf(stderr, "img: error: %v; what was under way did not end within %s\n", first, patience)
			os.Exit(first.code())
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		cancel(nil)
	}
}
