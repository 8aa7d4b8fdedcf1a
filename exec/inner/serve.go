package inner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"sync"
	"syscall"
	"time"
)

// lastWords is how long Serve waits for handlers when the caller is gone. Nobody reads what they would answer, and the
// process's end takes everything below it along.
const lastWords = time.Second

// Serve answers calls from the file until the other end closes; calls run at once, each in its goroutine. When the other end is
// gone, all contexts end and Serve returns after at most a second, nil if the end came between two messages. The file is
// Serve's from then on.
func Serve(f *os.File, handlers map[string]Handler) error {
	w, err := newWire(f)
	f.Close()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	s := &server{wire: w, handlers: handlers, ctx: ctx, running: map[uint64]context.CancelCauseFunc{}}
	err = s.loop()
	cancel(errors.New("the caller is gone"))
	w.conn.Close()
	s.drain(lastWords)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return nil // a caller that was killed may leave half a message
	}
	return err
}

type server struct {
	wire     *wire
	handlers map[string]Handler
	ctx      context.Context

	calls   sync.WaitGroup
	mu      sync.Mutex
	running map[uint64]context.CancelCauseFunc
}

func (s *server) loop() error {
	for {
		f, err := s.wire.receive()
		if err != nil {
			return err
		}
		switch f.kind {
		case kindCall:
			err = s.start(f)
		case kindCancel:
			f.closeFiles()
			s.cancel(f.id)
		default:
			f.closeFiles()
			err = fmt.Errorf("read: an answer where only calls are expected")
		}
		if err != nil {
			return err
		}
	}
}

func (s *server) start(f *frame) error {
	ctx, cancel := context.WithCancelCause(s.ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running[f.id] != nil {
		cancel(nil)
		f.closeFiles()
		return fmt.Errorf("read: two calls with id %d", f.id)
	}
	s.running[f.id] = cancel
	s.calls.Go(func() { s.serve(ctx, f) })
	return nil
}

// cancel ends the context of a call. One that has been answered meanwhile is unknown, and that is fine.
func (s *server) cancel(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cancel := s.running[id]; cancel != nil {
		cancel(context.Canceled)
	}
}

// serve runs one call and answers it.
func (s *server) serve(ctx context.Context, f *frame) {
	answer, out := s.answer(ctx, f)
	defer closeFiles(out)
	s.mu.Lock()
	s.running[f.id](nil)
	delete(s.running, f.id) // before sending: the caller may use the id again
	s.mu.Unlock()
	err := s.wire.send(answer)
	if err == nil || s.ctx.Err() != nil {
		return
	}
	// The answer cannot be sent as it is (too big, descriptors in flight): say so, or the caller would wait for ever.
	if s.wire.send(failure(f.id, &Error{Msg: fmt.Sprintf("answer %s: %v", f.method, err)})) != nil {
		s.wire.conn.Close()
	}
}

// answer runs the handler. A panic, in it or in how its reply is written, becomes its failure.
func (s *server) answer(ctx context.Context, f *frame) (answer *frame, out []*os.File) {
	defer func() {
		if p := recover(); p != nil {
			stack, _ := Marshal(string(debug.Stack())) // a string can always cross
			msg := fmt.Sprintf("panic in %s: %v", f.method, p)
			answer = failure(f.id, &Error{Msg: msg, Kind: KindPanic, Data: stack})
		}
	}()
	h, ok := s.handlers[f.method]
	switch {
	case !ok:
		f.closeFiles()
		return failure(f.id, &Error{Msg: fmt.Sprintf("the inner process has no method %q", f.method)}), nil
	case f.lost:
		f.closeFiles()
		return failure(f.id, &Error{Msg: fmt.Sprintf("take over the descriptors of %s: %v", f.method, syscall.EMFILE)}), nil
	}
	reply, out, err := h(ctx, f.body, f.files)
	if err != nil {
		return failure(f.id, wireError(ctx, err)), out
	}
	body, err := Marshal(reply)
	if err != nil {
		return failure(f.id, &Error{Msg: fmt.Sprintf("answer %s: %v", f.method, err)}), out
	}
	return &frame{kind: kindAnswer, id: f.id, body: body, files: out}, out
}

func failure(id uint64, e *Error) *frame {
	body, err := Marshal(e)
	if err != nil || len(body) > MaxBody { // a Kinder's data can be anything
		body, _ = Marshal(&Error{Msg: e.Msg[:min(len(e.Msg), 1<<16)]})
	}
	return &frame{kind: kindFailure, id: id, body: body}
}

// drain waits for the handlers, but not for ever.
func (s *server) drain(d time.Duration) {
	done := make(chan struct{})
	go func() { s.calls.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(d):
	}
}
