package exec

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"img/dag"
	"img/exec/sandbox"
	"img/exec/sshagent"
)

// A step's ssh agents. The first process makes a socket without a name and keeps a copy; the inner process gives it a name where the step
// sees it and begins to listen. So the step's connections arrive in the first process, where the caller's agent can be reached, and the
// name goes away with the step's private directory.
type agents struct {
	sockets []*os.File
	serve   []*sshagent.Agent
}

// add takes an agent for a mount and returns the number of its socket.
func (a *agents) add(agent *sshagent.Agent) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("make a socket for the ssh agent: %w", err)
	}
	a.sockets = append(a.sockets, os.NewFile(uintptr(fd), "agent"))
	a.serve = append(a.serve, agent)
	return len(a.sockets) - 1, nil
}

// during runs f, which hands the files to the inner process, and meanwhile answers whoever connects. The last of the files gets a byte as
// soon as all sockets listen: before, there is nothing to accept.
func (a *agents) during(ctx context.Context, f func(files []*os.File) error) error {
	defer closeAll(a.sockets)
	if len(a.sockets) == 0 {
		return f(nil)
	}
	ready, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	ctx, end := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.answer(ctx, ready)
	}()
	err = f(append(a.sockets, w))
	w.Close() // the step may have failed before it came to the sockets
	end()
	<-done
	return err
}

// answer serves all sockets once they listen, until ctx ends.
func (a *agents) answer(ctx context.Context, ready *os.File) {
	if n, _ := ready.Read(make([]byte, 1)); n == 0 {
		return // the step failed before
	}
	served := make(chan struct{})
	begun := 0
	for i, s := range a.sockets {
		l, err := net.FileListener(s)
		if err != nil {
			continue // the step sees a socket at which nobody answers
		}
		begun++
		go func() {
			a.serve[i].Serve(ctx, l)
			served <- struct{}{}
		}()
	}
	for range begun {
		<-served
	}
}

// listening tells the first process that all of a step's sockets listen, and leaves them to it.
func listening(files []*os.File) error {
	if len(files) == 0 {
		return nil
	}
	defer closeAll(files)
	_, err := files[len(files)-1].Write([]byte{1})
	return err
}

// agentArgs finds the agent of a mount. One that is missing is skipped unless it is required; the text is BuildKit's.
func (x *Executor) agentArgs(m dag.Mount, a *mountArgs, to *agents) (err error) {
	agent := x.o.Agents[m.ID]
	if agent == nil {
		if m.Required {
			return &MissingError{Err: fmt.Errorf("no SSH key %q forwarded from the client", m.ID), Remedy: fmt.Sprintf("give it with --ssh %s", m.ID)}
		}
		return nil
	}
	a.Given = true
	a.Socket, err = to.add(agent)
	return err
}

// A MissingError is something that a step requires and the caller did not give.
type MissingError struct {
	Err error
	// Remedy says how to give it.
	Remedy string
}

func (e *MissingError) Error() string { return e.Err.Error() }
func (e *MissingError) Unwrap() error { return e.Err }

// agent gives an agent's socket its name, in the step's private directory, and shows it to the step.
func (s *step) agent(m mountArgs) error {
	if !m.Given {
		return nil
	}
	if m.Socket < 0 || m.Socket >= len(s.sockets) {
		return errors.New("the agent came without a socket")
	}
	at := path.Join(s.dir, fmt.Sprintf("agent-%d", m.Socket))
	fd := int(s.sockets[m.Socket].Fd())
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: at}); err != nil {
		return fmt.Errorf("bind the socket: %w", err)
	}
	uid, gid := s.owner(m)
	// Owner and mode before anybody can connect.
	err := errors.Join(os.Chown(at, uid, gid), unix.Chmod(at, or(m.M.Mode, 0o600)&0o777), unix.Listen(fd, unix.SOMAXCONN))
	if err != nil {
		return err
	}
	if err := s.point(m.M.Target, false, at); err != nil {
		return err
	}
	s.mounts = append(s.mounts, sandbox.Mount{Type: "bind", Source: at, Target: m.M.Target, NoExec: true, NoDev: true, NoSuid: true})
	return nil
}
