package exec

import (
	"errors"
	"syscall"

	"img/engine"
	"img/exec/inner"
	"img/exec/sandbox"
	"img/userns"
)

// errnoError keeps the error number, so that "disk full" is known as such on the other side.
type errnoError struct {
	error
	errno syscall.Errno
}

func (e errnoError) Unwrap() error           { return e.error }
func (e errnoError) WireKind() (string, any) { return "errno", e.errno }

// wire prepares an error for crossing.
func wire(err error) error {
	var k inner.Kinder
	if err == nil || errors.As(err, &k) {
		return err
	}
	var n syscall.Errno
	if errors.As(err, &n) {
		return errnoError{err, n}
	}
	return err
}

// A remoteError is an error of the inner process with its cause made again.
type remoteError struct {
	msg   string
	cause error
}

func (e *remoteError) Error() string { return e.msg }
func (e *remoteError) Unwrap() error { return e.cause }

// fromWire makes the typed error again that the inner process returned.
func fromWire(err error) error {
	var e *inner.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Kind {
	case "exit":
		x := &sandbox.ExitError{}
		if inner.Unmarshal(e.Data, x) == nil {
			return x
		}
	case "errno":
		var n syscall.Errno
		if inner.Unmarshal(e.Data, &n) == nil {
			return &remoteError{e.Msg, n}
		}
	case "userns":
		u := &userns.Error{Err: err}
		if inner.Unmarshal(e.Data, &u.Remedy) == nil {
			return u
		}
	case inner.KindPanic:
		p := &engine.PanicError{Value: e.Msg}
		if inner.Unmarshal(e.Data, &p.Stack) == nil {
			return p
		}
	case "damaged":
		return &DamagedError{e.Msg}
	case "changed":
		return &remoteError{e.Msg, errChanged}
	}
	return err
}
