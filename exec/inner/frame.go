package inner

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// A frame is one message. On the wire, big-endian:
//
//	0  uint32  bytes of the body
//	4  uint64  id of the call
//	12 uint8   kind: 1 call, 2 answer, 3 failure, 4 cancel
//	13 uint8   number of descriptors, sent with the first byte of the header
//	14 uint16  bytes of the method name
//	16         method name (calls), body (code.go; empty in a cancel)
type frame struct {
	kind   byte
	id     uint64
	method string
	body   []byte
	files  []*os.File
	// lost says that descriptors were sent but could not be taken over: this process has no room for them.
	lost bool
}

const (
	kindCall    = 1
	kindAnswer  = 2
	kindFailure = 3
	kindCancel  = 4

	headerSize = 16
	maxMethod  = 256
)

func (f *frame) closeFiles() { closeFiles(f.files) }

func closeFiles(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// A wire is one end of the pair. Reads are one goroutine's business; writes may come from several.
type wire struct {
	conn *net.UnixConn

	mu  sync.Mutex // held while a frame is written
	bad error      // a frame was cut short: what follows could not be read
}

func newWire(f *os.File) (*wire, error) {
	c, err := net.FileConn(f) // a duplicate, close-on-exec and known to the poller
	if err != nil {
		return nil, fmt.Errorf("open the socket of the inner process: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("open the socket of the inner process: %s is no Unix socket", f.Name())
	}
	return &wire{conn: u}, nil
}

// check refuses what cannot be sent, while the connection is still good.
func (f *frame) check() error {
	switch {
	case len(f.files) > MaxFiles:
		return fmt.Errorf("%d descriptors in one message: at most %d are possible", len(f.files), MaxFiles)
	case len(f.body) > MaxBody:
		return fmt.Errorf("message of %d bytes: at most %d are possible", len(f.body), MaxBody)
	case len(f.method) > maxMethod:
		return fmt.Errorf("method name of %d bytes: at most %d are possible", len(f.method), maxMethod)
	}
	return nil
}

func (f *frame) header() []byte {
	b := make([]byte, headerSize, headerSize+len(f.method))
	binary.BigEndian.PutUint32(b, uint32(len(f.body)))
	binary.BigEndian.PutUint64(b[4:], f.id)
	b[12], b[13] = f.kind, byte(len(f.files))
	binary.BigEndian.PutUint16(b[14:], uint16(len(f.method)))
	return append(b, f.method...)
}

// send writes one frame. The files stay the caller's.
func (w *wire) send(f *frame) error {
	if err := f.check(); err != nil {
		return err
	}
	rights, err := rightsOf(f.files)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.bad != nil {
		return w.bad
	}
	head := f.header()
	n, _, err := w.conn.WriteMsgUnix(head, rights, nil)
	runtime.KeepAlive(f.files)
	if err != nil && n <= 0 {
		return fmt.Errorf("send: %w", err) // nothing left: the stream is whole
	}
	if err == nil {
		_, err = (&net.Buffers{head[n:], f.body}).WriteTo(w.conn)
	}
	if err != nil {
		w.bad = fmt.Errorf("send: %w", err)
		w.conn.Close() // the other end holds half a frame; ours must not wait for answers either
	}
	return w.bad
}

// rightsOf is the control message that carries the files. Their blocking mode is left alone (File.Fd would change it for
// everybody who has the same open file).
func rightsOf(files []*os.File) ([]byte, error) {
	if len(files) == 0 {
		return nil, nil
	}
	fds := make([]int, len(files))
	for i, f := range files {
		c, err := f.SyscallConn()
		if err == nil {
			err = c.Control(func(fd uintptr) { fds[i] = int(fd) })
		}
		if err != nil {
			return nil, fmt.Errorf("send descriptor %d: %w", i, err)
		}
	}
	return unix.UnixRights(fds...), nil
}

// receive reads one frame; io.EOF means that the other end is gone.
func (w *wire) receive() (*frame, error) {
	return readFrame(w.conn, func(b []byte) (int, []*os.File, bool, error) { return readRights(w.conn, b) })
}

// readFrame reads one frame: what is in the header by first, which also takes descriptors, the rest from r.
func readFrame(r io.Reader, first func([]byte) (n int, files []*os.File, lost bool, err error)) (_ *frame, err error) {
	f := &frame{}
	defer func() {
		if err != nil {
			f.closeFiles()
		}
	}()
	head := make([]byte, headerSize)
	for got := 0; got < headerSize; {
		n, files, lost, err := first(head[got:])
		f.files, f.lost = append(f.files, files...), f.lost || lost
		got += n
		if err != nil || n == 0 {
			return nil, endOf(err, got == 0)
		}
	}
	size, method := binary.BigEndian.Uint32(head), binary.BigEndian.Uint16(head[14:])
	f.id, f.kind = binary.BigEndian.Uint64(head[4:]), head[12]
	if f.kind < kindCall || f.kind > kindCancel || size > MaxBody || method > maxMethod || head[13] > MaxFiles {
		return nil, fmt.Errorf("read: no frame begins with %x", head)
	}
	if len(f.files) > int(head[13]) {
		return nil, fmt.Errorf("read: %d descriptors where %d were announced", len(f.files), head[13])
	}
	f.lost = f.lost || len(f.files) < int(head[13])
	rest, err := readBytes(r, int(method)+int(size))
	if err != nil {
		return nil, endOf(err, false)
	}
	f.method, f.body = string(rest[:method]), rest[method:]
	return f, nil
}

// endOf tells the end between two frames (io.EOF) from the end within one. A peer that dies with unread messages resets
// the socket: that is its end as well.
func endOf(err error, clean bool) error {
	gone := err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, unix.ECONNRESET) || errors.Is(err, net.ErrClosed)
	switch {
	case gone && clean:
		return io.EOF
	case gone:
		return io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read: %w", err)
}

// readBytes reads n bytes. Memory grows with what arrives, not with what a header says.
func readBytes(r io.Reader, n int) ([]byte, error) {
	const step = 1 << 20
	b := make([]byte, 0, min(n, step))
	for len(b) < n {
		if len(b) == cap(b) {
			b = append(make([]byte, 0, min(n, 2*cap(b))), b...)
		}
		old := len(b)
		b = b[:min(n, cap(b))]
		if m, err := io.ReadFull(r, b[old:]); err != nil {
			return b[:old+m], err
		}
	}
	return b, nil
}

// readRights reads into b and takes over the descriptors that came along, close-on-exec from the first moment (the net
// package asks for that). A descriptor in non-blocking mode gets the poller, others block as usual.
func readRights(c *net.UnixConn, b []byte) (n int, files []*os.File, lost bool, err error) {
	control := make([]byte, unix.CmsgSpace(4*MaxFiles))
	n, cn, flags, _, err := c.ReadMsgUnix(b, control)
	if cn > 0 {
		var perr error
		if files, perr = filesOf(control[:cn]); err == nil {
			err = perr
		}
	}
	return n, files, flags&unix.MSG_CTRUNC != 0, err
}

func filesOf(control []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, fmt.Errorf("control message: %w", err)
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // another kind of message carries no descriptors
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), fmt.Sprintf("received-%d", fd)))
		}
	}
	return files, nil
}
