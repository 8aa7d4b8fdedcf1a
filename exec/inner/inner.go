// Package inner is the wire between the two processes of a build: calls with arguments and descriptors, over a Unix
// socket pair.
//
// The first process keeps the caller's identity and opens everything that is the caller's; the inner one runs inside the
// build's namespaces and gets descriptors. The package knows nothing about what is called.
package inner

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// MaxFiles is how many descriptors one call or one answer can carry (the kernel's SCM_MAX_FD).
const MaxFiles = 253

// MaxBody is the largest size of what one call or one answer carries beside descriptors, in bytes.
const MaxBody = 1 << 28

// ErrDied is the error of calls whose other end is gone: it died, or the connection was closed.
var ErrDied = errors.New("the inner process died")

// KindPanic is the kind of an Error that stands for a handler's panic; its data is the stack, a string.
const KindPanic = "panic"

// kindCanceled marks a handler that stopped because the caller's context had ended.
const kindCanceled = "canceled"

// A Handler serves one method. Files that came with the call are the handler's to close. Returned files are closed after sending.
// ctx ends when the caller's does, and when the caller is gone. A panic becomes an Error of KindPanic on the caller's side;
// a panic in a goroutine of the handler's own cannot be caught here.
type Handler func(ctx context.Context, args []byte, files []*os.File) (reply any, out []*os.File, err error)

// An Error is a handler's failure on the caller's side. Kind and Data carry what a typed error needs to be made again.
type Error struct {
	Msg  string
	Kind string
	Data []byte // as Marshal writes it
}

func (e *Error) Error() string { return e.Msg }

// A Kinder is an error that crosses the wire with its kind and data. The data must be what Marshal can write.
type Kinder interface {
	error
	WireKind() (kind string, data any)
}

// wireError makes of a handler's error what crosses. ctx is the handler's.
func wireError(ctx context.Context, err error) *Error {
	var k Kinder
	var relayed *Error
	switch {
	case errors.As(err, &k):
		kind, data := k.WireKind()
		text, merr := Marshal(data)
		if merr != nil {
			return &Error{Msg: fmt.Sprintf("%v (its data was lost: %v)", err, merr), Kind: kind}
		}
		return &Error{Msg: err.Error(), Kind: kind, Data: text}
	case errors.As(err, &relayed):
		return &Error{Msg: err.Error(), Kind: relayed.Kind, Data: relayed.Data}
	case ctx.Err() != nil && (errors.Is(err, ctx.Err()) || errors.Is(err, context.Cause(ctx))):
		return &Error{Msg: err.Error(), Kind: kindCanceled}
	}
	return &Error{Msg: err.Error()}
}
