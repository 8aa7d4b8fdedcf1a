package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// An interrupted is the cause of a context that a signal ended.
type interrupted struct{ signal syscall.Signal }

func (e interrupted) Error() string { return "interrupted (" + e.signal.String() + ")" }
func (e interrupted) code() int     { return 128 + int(e.signal) }

// withSignals returns a context that the first SIGINT or SIGTERM cancels, so that steps end and things are tidied. The
// second ends the process at once; whatever it leaves behind, the store is right and the inner process dies with us.
func withSignals(parent context.Context, stderr io.Writer) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		for s := range signals {
			cause := interrupted{s.(syscall.Signal)}
			if ctx.Err() != nil {
				os.Exit(cause.code())
			}
			fmt.Fprintln(stderr, "img: stopping; the same signal again stops at once")
			cancel(cause)
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(signals)
		cancel(nil)
	}
}
