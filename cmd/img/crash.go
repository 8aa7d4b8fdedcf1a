package main

import (
	"errors"
	"fmt"
	"io"
	"runtime/debug"

	"img/engine"
)

// catch runs f. A panic in it is printed with its stack and becomes a *crash.
func catch(stderr io.Writer, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			fmt.Fprintf(stderr, "panic: %v\n%s", p, debug.Stack())
			err = &crash{p}
		}
	}()
	return f()
}

// crashed makes a panic of a step, in this process or the inner one, a *crash in its place, and prints the stack.
func crashed(stderr io.Writer, err error) error {
	var p *engine.PanicError
	if !errors.As(err, &p) {
		return err
	}
	fmt.Fprintf(stderr, "%v\n%s", p, p.Stack)
	bug := &crash{p.Value}
	var step *engine.VertexError
	if errors.As(err, &step) {
		return &engine.VertexError{Vertex: step.Vertex, Err: bug}
	}
	return bug
}
