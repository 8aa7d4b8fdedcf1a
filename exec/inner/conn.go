package inner

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Conn is the caller's end. Calls may be made from several goroutines at once.
type Conn struct {
	wire *wire
	done chan struct{} // closed when the reader has ended

	mu      sync.Mutex
	next    uint64
	pending map[uint64]chan *frame // nil once the other end is gone
}

// Pair makes a socket pair: the caller's end, and the file to hand to the inner process. The caller closes the file as soon as
// that process has started; while any copy of it is open here, a death would not be seen.
func Pair() (*Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "inner-caller"), os.NewFile(uintptr(fds[1]), "inner-server")
	defer ours.Close()
	w, err := newWire(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	c := &Conn{wire: w, done: make(chan struct{}), pending: map[uint64]chan *frame{}}
	go c.read()
	return c, theirs, nil
}

// read hands answers to those who wait for them, until the other end is gone.
func (c *Conn) read() {
	defer close(c.done)
	for {
		f, err := c.wire.receive()
		if err != nil {
			break
		}
		if !c.deliver(f) {
			f.closeFiles()
			break // nobody asked: the stream cannot be trusted any more
		}
	}
	c.wire.conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, answer := range c.pending {
		close(answer)
	}
	c.pending = nil
}

func (c *Conn) deliver(f *frame) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	answer, ok := c.pending[f.id]
	if !ok || (f.kind != kindAnswer && f.kind != kindFailure) {
		return false
	}
	delete(c.pending, f.id)
	answer <- f // has room for the one answer
	return true
}

// expect registers a new call.
func (c *Conn) expect() (id uint64, answer chan *frame, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending == nil {
		return 0, nil, ErrDied
	}
	c.next++
	answer = make(chan *frame, 1)
	c.pending[c.next] = answer
	return c.next, answer, nil
}

func (c *Conn) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
}

// Call calls method and waits for its answer; reply is a pointer or nil. If the inner process dies, the error is ErrDied.
//
// When ctx ends, the handler's context ends too, and Call still waits for its answer, so that nothing runs behind the
// caller's back; a handler that stopped for that reason makes Call return the cause of ctx. Other failures of the handler are
// an *Error. The files stay the caller's; the returned ones are the caller's too.
func (c *Conn) Call(ctx context.Context, method string, args, reply any, files ...*os.File) ([]*os.File, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	body, err := Marshal(args)
	if err != nil {
		return nil, fmt.Errorf("call %s: %w", method, err)
	}
	id, answer, err := c.expect()
	if err != nil {
		return nil, fmt.Errorf("call %s: %w", method, err)
	}
	if err := c.wire.send(&frame{kind: kindCall, id: id, method: method, body: body, files: files}); err != nil {
		c.forget(id)
		return nil, fmt.Errorf("call %s: %w", method, died(err))
	}
	f := c.await(ctx, id, answer)
	if f == nil {
		return nil, fmt.Errorf("call %s: %w", method, ErrDied)
	}
	out, err := f.result(reply)
	var e *Error
	if errors.As(err, &e) && e.Kind == kindCanceled && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return out, err
}

// await waits for the answer, nil if there will be none.
func (c *Conn) await(ctx context.Context, id uint64, answer chan *frame) *frame {
	select {
	case f := <-answer:
		return f
	case <-ctx.Done():
		// A failed send means that the other end is gone; the reader sees that too and closes answer.
		_ = c.wire.send(&frame{kind: kindCancel, id: id})
		return <-answer
	}
}

// result reads an answer.
func (f *frame) result(reply any) ([]*os.File, error) {
	if f.kind == kindFailure {
		f.closeFiles()
		e := &Error{}
		if err := Unmarshal(f.body, e); err != nil {
			return nil, fmt.Errorf("read a failure of the inner process: %w", err)
		}
		return nil, e
	}
	if f.lost {
		f.closeFiles()
		return nil, fmt.Errorf("take over the descriptors of an answer: %w", syscall.EMFILE)
	}
	if reply != nil {
		if err := Unmarshal(f.body, reply); err != nil {
			f.closeFiles()
			return nil, fmt.Errorf("read an answer of the inner process: %w", err)
		}
	}
	return f.files, nil
}

// died turns the ways in which a socket says that nobody listens into ErrDied.
func died(err error) error {
	for _, gone := range []error{syscall.EPIPE, syscall.ECONNRESET, net.ErrClosed} {
		if errors.Is(err, gone) {
			return ErrDied
		}
	}
	return err
}

// Close ends the connection, and with it the inner process. Calls that wait return ErrDied.
func (c *Conn) Close() error {
	err := c.wire.conn.Close()
	<-c.done
	if errors.Is(err, net.ErrClosed) {
		return nil // the other end was first
	}
	return err
}
