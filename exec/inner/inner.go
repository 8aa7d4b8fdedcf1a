// Package inner is the wire between the two processes of a build: calls with JSON arguments and descriptors, over a
// Unix socket pair.
//
// The first process keeps the caller's identity and opens everything that is the caller's; the inner one runs inside the
// build's namespaces and gets descriptors. The package knows nothing about what is called.
package inner

import (
	"context"
	"encoding/json"
	"os"
)

// A Handler serves one method. Files that came with the call are the handler's to close. Returned files are closed after sending.
// ctx ends when the caller's does.
type Handler func(ctx context.Context, args json.RawMessage, files []*os.File) (reply any, out []*os.File, err error)

// An Error is a handler's failure on the caller's side. Kind and Data carry what a typed error needs to be made again.
type Error struct {
	Msg  string          `json:"msg"`
	Kind string          `json:"kind,omitempty"`
	Data json.RawMessage `json:"data,omitempty"`
}

func (e *Error) Error() string { return e.Msg }

// A Kinder is an error that crosses the wire with its kind and data.
type Kinder interface {
	error
	WireKind() (kind string, data any)
}

// A Conn is the caller's end. Calls may be made from several goroutines at once.
type Conn struct{}

// Pair makes a socket pair: the caller's end, and the file to hand to the inner process.
func Pair() (*Conn, *os.File, error) { panic("unwritten") }

// Call calls method and waits for its answer; reply is a pointer or nil. If the inner process dies, the error is ErrDied.
func (c *Conn) Call(ctx context.Context, method string, args, reply any, files ...*os.File) ([]*os.File, error) {
	panic("unwritten")
}

// Close ends the connection, and with it the inner process.
func (c *Conn) Close() error { panic("unwritten") }

// Serve answers calls from the file until the other end closes; calls run at once, each in its goroutine. When the other end is
// gone, all contexts end and Serve returns after at most a short time.
func Serve(f *os.File, handlers map[string]Handler) error { panic("unwritten") }
