package exec

import (
	"encoding/json"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"img/engine"
	"img/exec/inner"
	"img/exec/sandbox"
	"img/userns"
)

// cross does to an error what the wire does.
func cross(err error) error {
	out := &inner.Error{Msg: err.Error()}
	var k inner.Kinder
	if errors.As(wire(err), &k) {
		kind, data := k.WireKind()
		out.Kind = kind
		out.Data, _ = json.Marshal(data)
	}
	return fromWire(out)
}

// An error of the inner process has the same words and the same type in the first one.
func TestWire(t *testing.T) {
	for _, c := range []struct {
		err  error
		same func(error) bool
	}{
		{errors.New("plain"), func(err error) bool { return true }},
		{&sandbox.ExitError{Code: 3}, is(func(e *sandbox.ExitError) bool { return e.Code == 3 })},
		{fmt.Errorf("write: %w", syscall.ENOSPC), func(err error) bool { return errors.Is(err, syscall.ENOSPC) }},
		{&userns.Error{Err: errors.New("no"), Remedy: "do"}, is(func(e *userns.Error) bool { return e.Remedy == "do" })},
		{&changedError{"a file"}, func(err error) bool { return errors.Is(err, errChanged) }},
	} {
		if got := cross(c.err); got.Error() != c.err.Error() || !c.same(got) {
			t.Errorf("%v became %v (%T)", c.err, got, got)
		}
	}
}

func is[E error](ok func(E) bool) func(error) bool {
	return func(err error) bool {
		var e E
		return errors.As(err, &e) && ok(e)
	}
}

// A panic of a handler is a bug here, too, with the stack that it had there.
func TestWirePanic(t *testing.T) {
	stack, err := json.Marshal("goroutine 7")
	if err != nil {
		t.Fatal(err)
	}
	var p *engine.PanicError
	err = fromWire(&inner.Error{Msg: "panic in run: nil map", Kind: inner.KindPanic, Data: stack})
	if !errors.As(err, &p) || p.Value != "panic in run: nil map" || p.Stack != "goroutine 7" {
		t.Errorf("got %v (%T)", err, err)
	}
}
