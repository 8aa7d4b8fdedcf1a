// Package sshagent lends an ssh agent to somebody who may use its keys and nothing else: it stands between, and lets through what asks for
// the list of keys and for signatures.
//
// The agent is another process's, behind a socket, or one of our own with keys from files. The package does not know who asks; it is the
// protocol of draft-miller-ssh-agent, spoken from the agent's side.
package sshagent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Messages of the protocol, by their first byte.
const (
	failure           = 5
	requestIdentities = 11
	identitiesAnswer  = 12
	signRequest       = 13
	signResponse      = 14
)

// maxMessage bounds a message, in bytes; OpenSSH has the same limit.
const maxMessage = 256 << 10

// maxKeyFile bounds a file of a key, in bytes, as BuildKit does.
const maxKeyFile = 100 << 10

// dialTime is how long another agent may take to accept a connection.
const dialTime = 2 * time.Second

// An Agent answers requests. The zero value has no keys.
type Agent struct {
	// Socket is another agent's; requests go there. Empty: the agent has keys of its own.
	Socket string
	// Raw passes everything on, both ways, whatever it is. It takes a Socket.
	Raw  bool
	keys []*key
}

// Open makes an agent of one socket, or of any number of files with private keys that have no passphrase.
func Open(paths ...string) (*Agent, error) {
	a := &Agent{}
	for _, p := range paths {
		info, err := os.Stat(p)
		switch {
		case err != nil:
			return nil, err
		case info.Mode()&os.ModeSocket == 0:
			k, err := readKey(p)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", p, err)
			}
			a.keys = append(a.keys, k)
		case len(paths) > 1:
			return nil, fmt.Errorf("%s is a socket, and cannot be combined with others", p)
		default:
			// The caller may change its directory, the agent stays where it is.
			if a.Socket, err = filepath.Abs(p); err != nil {
				return nil, err
			}
		}
	}
	return a, nil
}

func readKey(path string) (*key, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	if len(text) > maxKeyFile {
		return nil, fmt.Errorf("more than %d KiB is no private key", maxKeyFile>>10)
	}
	return parseKey(text)
}

// Path is the socket of another process's agent, "" if there is none.
func (a *Agent) Path() string {
	if a == nil {
		return ""
	}
	return a.Socket
}

// Listen serves the agent on a new socket in a directory until the returned function is called. It is for programs that take an agent by
// path, as git's ssh does.
func (a *Agent) Listen(dir string) (path string, end func(), err error) {
	path = filepath.Join(dir, "agent")
	l, err := net.Listen("unix", path)
	if err != nil {
		return "", nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.Serve(context.Background(), l)
	}()
	return path, func() { l.Close(); <-done }, nil
}

// Serve answers all who connect, until the listener is closed or ctx ends; it ends their connections then, and closes the listener.
func (a *Agent) Serve(ctx context.Context, l net.Listener) {
	ctx, end := context.WithCancel(ctx)
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var serving sync.WaitGroup
	defer serving.Wait()
	defer end() // before waiting: it ends the connections
	for {
		conn, err := l.Accept()
		if err != nil {
			l.Close()
			return
		}
		serving.Go(func() {
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			defer conn.Close()
			a.ServeConn(ctx, conn)
		})
	}
}

// ServeConn answers one who is connected, until it or the other agent goes away, or one of them says what is no message.
func (a *Agent) ServeConn(ctx context.Context, conn net.Conn) {
	answer := a.answer
	if a.Socket != "" {
		other, err := (&net.Dialer{Timeout: dialTime}).DialContext(ctx, "unix", a.Socket)
		if err != nil {
			return
		}
		defer context.AfterFunc(ctx, func() { other.Close() })()
		defer other.Close()
		if a.Raw {
			splice(conn, other)
			return
		}
		answer = func(request []byte) ([]byte, error) { return ask(other, request) }
	}
	for {
		request, err := readMessage(conn)
		if err != nil {
			return
		}
		reply := []byte{failure}
		if allowed(request) {
			if reply, err = answer(request); err != nil {
				return
			}
		}
		if writeMessage(conn, reply) != nil {
			return
		}
	}
}

// allowed: whoever borrows an agent neither changes nor locks it. Extensions are the agent's own words; nobody knows what they do.
func allowed(request []byte) bool {
	return request[0] == requestIdentities && len(request) == 1 || request[0] == signRequest
}

// ask passes a request on to another agent. What it says that is no answer to the request is no answer at all.
func ask(agent io.ReadWriter, request []byte) ([]byte, error) {
	if err := writeMessage(agent, request); err != nil {
		return nil, err
	}
	reply, err := readMessage(agent)
	if err != nil {
		return nil, err
	}
	if want := map[byte]byte{requestIdentities: identitiesAnswer, signRequest: signResponse}[request[0]]; reply[0] != want {
		return []byte{failure}, nil
	}
	return reply, nil
}

// splice copies both ways until one side has closed.
func splice(a, b net.Conn) {
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		both.Go(func() {
			io.Copy(way[0], way[1])
			if w, ok := way[0].(interface{ CloseWrite() error }); ok {
				w.CloseWrite()
			}
		})
	}
	both.Wait()
}

// readMessage reads a message: its length in four bytes, and at least the byte that says what it is.
func readMessage(r io.Reader) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n == 0 || n > maxMessage {
		return nil, fmt.Errorf("a message of %d bytes", n)
	}
	m := make([]byte, n)
	_, err := io.ReadFull(r, m)
	return m, err
}

func writeMessage(w io.Writer, m []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(m))), m...))
	return err
}
