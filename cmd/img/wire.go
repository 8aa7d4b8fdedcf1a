package main

import (
	"encoding/json"
	"errors"
	"syscall"

	"img/exec/inner"
	"img/exec/sandbox"
	"img/userns"
)

// Kinds of errors that cross from the inner process and are made again here.
const (
	wireExit   = "exit"   // *sandbox.ExitError; data: the struct
	wireErrno  = "errno"  // syscall.Errno; data: the number
	wireHost   = "host"   // *userns.Error; data: the remedy
	wireUserns = "userns" // *userns.Error; data: {"remedy": ...}
)

// A remade is an error of the inner process with the words it had there and the identity it had there.
type remade struct {
	words *inner.Error
	cause error
}

func (e *remade) Error() string { return e.words.Msg }
func (e *remade) Unwrap() error { return e.cause }

// fromWire gives an error that came across the wire the type it had, so that errors.As and errors.Is find it. Other
// errors come back as they are.
func fromWire(err error) error {
	var came *inner.Error
	var done *remade
	if !errors.As(err, &came) || errors.As(err, &done) {
		return err
	}
	cause := wireCause(came)
	if cause == nil {
		return err
	}
	if error(came) == err {
		return &remade{words: came, cause: cause}
	}
	return &rewrapped{err: err, cause: cause}
}

// A rewrapped keeps what was wrapped around the inner process's error on our side.
type rewrapped struct{ err, cause error }

func (e *rewrapped) Error() string   { return e.err.Error() }
func (e *rewrapped) Unwrap() []error { return []error{e.err, e.cause} }

func wireCause(e *inner.Error) error {
	switch e.Kind {
	case wireExit:
		exit := new(sandbox.ExitError)
		if json.Unmarshal(e.Data, exit) == nil {
			return exit
		}
	case wireHost:
		host := &userns.Error{Err: errors.New(e.Msg)}
		if json.Unmarshal(e.Data, &host.Remedy) == nil {
			return host
		}
	case wireUserns:
		var data struct {
			Remedy string `json:"remedy"`
		}
		if json.Unmarshal(e.Data, &data) == nil {
			return &userns.Error{Err: errors.New(e.Msg), Remedy: data.Remedy}
		}
	case wireErrno:
		var n syscall.Errno
		if json.Unmarshal(e.Data, &n) == nil {
			return n
		}
	}
	return nil
}
