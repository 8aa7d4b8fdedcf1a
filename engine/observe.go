package engine

import (
	"bytes"
	"io"
	"sync"
	"time"
)

// An observer hands events on, one at a time.
type observer struct {
	observe func(Event)
	now     func() time.Time

	mu sync.Mutex // held while observe runs
}

func (o *observer) emit(e Event) {
	if o.observe == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	e.Time = o.now()
	o.observe(e)
}

func (o *observer) note(n *node, state State, text string) {
	o.emit(Event{Vertex: n.v, State: state, Key: n.key, Text: n.text, Note: text})
}

// A logWriter forwards what a step prints, as it was written. It keeps nothing, so that a step cannot print faster
// than its output is taken.
type logWriter struct {
	n  *node
	to *observer

	mu     sync.Mutex
	closed bool
}

func (w *logWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, io.ErrClosedPipe
	}
	if len(p) > 0 && w.to.observe != nil {
		w.to.emit(Event{Vertex: w.n.v, State: Running, Key: w.n.key, Log: bytes.Clone(p)})
	}
	return len(p), nil
}

// close waits for a Write under way; later ones fail, so that no output follows the vertex's last event.
func (w *logWriter) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
}
