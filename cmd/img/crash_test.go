package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"img/dag"
	"img/engine"
)

// A panic ends with the stack, the place and exit code 100, whichever process it was in.
func TestCrash(t *testing.T) {
	step := &engine.VertexError{
		Vertex: &dag.Vertex{Name: "RUN x", Pos: dag.Pos{File: "Dockerfile", Line: 3}},
		Err:    &engine.PanicError{Value: "panic in run: nil map", Stack: "goroutine 7\n"},
	}
	for name, f := range map[string]func(w *bytes.Buffer) error{
		"first process": func(w *bytes.Buffer) error { return catch(w, func() error { panic("nil map") }) },
		"a step":        func(w *bytes.Buffer) error { return crashed(w, step) },
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			code := report(context.Background(), &Globals{stderr: &out}, f(&out))
			if code != exitBug || !strings.Contains(out.String(), "goroutine ") || !strings.Contains(out.String(), "nil map") {
				t.Errorf("code %d, said:\n%s", code, out.String())
			}
		})
	}
	if err := errors.New("other"); crashed(&bytes.Buffer{}, err) != err {
		t.Error("an error that is no panic was changed")
	}
}
