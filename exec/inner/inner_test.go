package inner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// serverVar makes the test binary the inner process: it serves descriptor 3.
const serverVar = "IMG_TEST_INNER_SERVER"

func TestMain(m *testing.M) {
	if os.Getenv(serverVar) != "" {
		if err := Serve(os.NewFile(3, "socket"), handlers()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// A typed error that crosses.
type busy struct{ Port int }

func (e *busy) Error() string           { return fmt.Sprintf("port %d is busy", e.Port) }
func (e *busy) WireKind() (string, any) { return "busy", e }

func handlers() map[string]Handler {
	return map[string]Handler{
		"echo": func(_ context.Context, args []byte, files []*os.File) (any, []*os.File, error) {
			var text string
			if err := Unmarshal(args, &text); err != nil {
				return nil, nil, err
			}
			return text, files, nil
		},
		"pid": func(context.Context, []byte, []*os.File) (any, []*os.File, error) {
			return os.Getpid(), nil, nil
		},
		"read": func(_ context.Context, _ []byte, files []*os.File) (any, []*os.File, error) {
			defer closeFiles(files)
			b, err := io.ReadAll(files[0])
			return string(b), nil, err
		},
		"flags": func(_ context.Context, _ []byte, files []*os.File) (any, []*os.File, error) {
			defer closeFiles(files)
			flags, err := unix.FcntlInt(files[0].Fd(), unix.F_GETFD, 0)
			return flags, nil, err
		},
		"busy": func(context.Context, []byte, []*os.File) (any, []*os.File, error) {
			return nil, nil, fmt.Errorf("listen: %w", &busy{80})
		},
		"plain": func(context.Context, []byte, []*os.File) (any, []*os.File, error) {
			return nil, nil, errors.New("disk on fire")
		},
		"relayed": func(context.Context, []byte, []*os.File) (any, []*os.File, error) {
			return nil, nil, fmt.Errorf("far: %w", &Error{Msg: "x", Kind: "busy", Data: []byte{2}})
		},
		"panic": func(context.Context, []byte, []*os.File) (any, []*os.File, error) {
			var none []int
			return none[0], nil, nil
		},
		"unwritable": func(context.Context, []byte, []*os.File) (any, []*os.File, error) {
			return time.Time{}, nil, nil
		},
		"wait": func(ctx context.Context, _ []byte, _ []*os.File) (any, []*os.File, error) {
			<-ctx.Done()
			return nil, nil, fmt.Errorf("wait: %w", ctx.Err())
		},
		"late": func(ctx context.Context, _ []byte, _ []*os.File) (any, []*os.File, error) {
			<-ctx.Done()
			time.Sleep(50 * time.Millisecond)
			return "done all the same", nil, nil
		},
		"die": func(context.Context, []byte, []*os.File) (any, []*os.File, error) {
			os.Exit(7)
			return nil, nil, nil
		},
		"files": func(_ context.Context, args []byte, _ []*os.File) (any, []*os.File, error) {
			var n int
			if err := Unmarshal(args, &n); err != nil {
				return nil, nil, err
			}
			out := make([]*os.File, n)
			for i := range out {
				f, err := os.Open("/dev/null")
				if err != nil {
					return nil, out[:i], err
				}
				out[i] = f
			}
			return n, out, nil
		},
	}
}

// within serves in this process.
func within(t *testing.T) *Conn {
	c, f, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- Serve(f, handlers()) }()
	t.Cleanup(func() {
		c.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return c
}

// child serves in a process of its own.
func child(t *testing.T) (*Conn, *exec.Cmd) {
	c, f, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{serverVar + "=1"}
	cmd.ExtraFiles = []*os.File{f}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	t.Cleanup(func() { c.Close(); cmd.Wait() })
	return c, cmd
}

func each(t *testing.T, test func(t *testing.T, c *Conn)) {
	t.Run("within", func(t *testing.T) { test(t, within(t)) })
	t.Run("child", func(t *testing.T) { c, _ := child(t); test(t, c) })
}

func TestEcho(t *testing.T) {
	each(t, func(t *testing.T, c *Conn) {
		for _, size := range []int{0, 1, 100, 1 << 16, 1<<20 - 2, 1 << 20, 40 << 20} {
			want := strings.Repeat("x", size)
			var got string
			if _, err := c.Call(t.Context(), "echo", want, &got); err != nil || got != want {
				t.Fatalf("%d bytes: %d came back, %v", size, len(got), err)
			}
		}
	})
}

func TestThousandCalls(t *testing.T) {
	each(t, func(t *testing.T, c *Conn) {
		var calls sync.WaitGroup
		for i := range 1000 {
			calls.Go(func() {
				want, got := strings.Repeat(fmt.Sprint(i, " "), i), ""
				if _, err := c.Call(t.Context(), "echo", want, &got); err != nil || got != want {
					t.Errorf("call %d: %d bytes, %v", i, len(got), err)
				}
			})
		}
		calls.Wait()
	})
}

// Each call's descriptors stay with it, in both directions, however many calls run.
func TestFiles(t *testing.T) {
	each(t, func(t *testing.T, c *Conn) {
		var calls sync.WaitGroup
		for i := range 50 {
			calls.Go(func() {
				var files []*os.File
				for j := range i % 5 {
					files = append(files, memory(t, fmt.Sprint(i, ".", j)))
				}
				defer closeFiles(files)
				back, err := c.Call(t.Context(), "echo", "", nil, files...)
				defer closeFiles(back)
				if err != nil || len(back) != len(files) {
					t.Errorf("call %d: %d files for %d, %v", i, len(back), len(files), err)
					return
				}
				for j, f := range back {
					if b, err := io.ReadAll(f); err != nil || string(b) != fmt.Sprint(i, ".", j) {
						t.Errorf("file %d of call %d: %q, %v", j, i, b, err)
					}
				}
			})
		}
		calls.Wait()
	})
}

// memory is a file with a text, read from its start.
func memory(t *testing.T, text string) *os.File {
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "memory")
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	return f
}

// A pipe from the os package is non-blocking, one from a shell blocks; both are read to their end.
func TestPipes(t *testing.T) {
	for _, flags := range []int{0, unix.O_NONBLOCK} {
		each(t, func(t *testing.T, c *Conn) {
			var p [2]int
			if err := unix.Pipe2(p[:], flags|unix.O_CLOEXEC); err != nil {
				t.Fatal(err)
			}
			r, w := os.NewFile(uintptr(p[0]), "r"), os.NewFile(uintptr(p[1]), "w")
			defer r.Close()
			go func() {
				time.Sleep(10 * time.Millisecond)
				w.WriteString("hello")
				w.Close()
			}()
			var got string
			if _, err := c.Call(t.Context(), "read", nil, &got, r); err != nil || got != "hello" {
				t.Fatalf("%q, %v", got, err)
			}
			now, err := unix.FcntlInt(uintptr(p[0]), unix.F_GETFL, 0)
			if err != nil || now&unix.O_NONBLOCK != flags {
				t.Errorf("the pipe's flags changed to %#x, %v", now, err)
			}
		})
	}
}

func TestCloseOnExec(t *testing.T) {
	each(t, func(t *testing.T, c *Conn) {
		f := memory(t, "")
		defer f.Close()
		var flags int
		if _, err := c.Call(t.Context(), "flags", nil, &flags, f); err != nil || flags != unix.FD_CLOEXEC {
			t.Errorf("sent: flags %#x, %v", flags, err)
		}
		back, err := c.Call(t.Context(), "files", 1, nil)
		if err != nil || len(back) != 1 {
			t.Fatal(back, err)
		}
		defer back[0].Close()
		if flags, err := unix.FcntlInt(back[0].Fd(), unix.F_GETFD, 0); err != nil || flags != unix.FD_CLOEXEC {
			t.Errorf("received: flags %#x, %v", flags, err)
		}
	})
}

func TestTooManyFiles(t *testing.T) {
	each(t, func(t *testing.T, c *Conn) {
		f := memory(t, "")
		defer f.Close()
		many := make([]*os.File, MaxFiles+1)
		for i := range many {
			many[i] = f
		}
		_, err := c.Call(t.Context(), "echo", "", nil, many...)
		match(t, err, "call echo: 254 descriptors in one message: at most 253 are possible")
		_, err = c.Call(t.Context(), "files", MaxFiles+1, nil)
		match(t, err, "answer files: 254 descriptors in one message: at most 253 are possible")
		back, err := c.Call(t.Context(), "echo", "", nil, many[:MaxFiles]...)
		if err != nil || len(back) != MaxFiles {
			t.Errorf("%d files came back, %v", len(back), err)
		}
		closeFiles(back)
	})
}

func match(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestErrors(t *testing.T) {
	each(t, func(t *testing.T, c *Conn) {
		for _, x := range []struct{ method, msg, kind, data string }{
			{"busy", "listen: port 80 is busy", "busy", "\xa0\x01"},
			{"plain", "disk on fire", "", ""},
			{"relayed", "far: x", "busy", "\x02"},
			{"nothing", `the inner process has no method "nothing"`, "", ""},
			{"panic", "panic in panic: runtime error: index out of range [0] with length 0", KindPanic, "*"},
			{"unwritable", "answer unwritable: a time.Time cannot cross", "", ""},
		} {
			_, err := c.Call(t.Context(), x.method, nil, nil)
			var e *Error
			if !errors.As(err, &e) || e.Msg != x.msg || e.Kind != x.kind || (x.data != "*" && string(e.Data) != x.data) {
				t.Errorf("%s: %#v", x.method, err)
			} else if x.data == "*" && !strings.Contains(string(e.Data), "inner_test.go") {
				t.Errorf("%s: no stack in %s", x.method, e.Data)
			}
		}
		if _, err := c.Call(t.Context(), "echo", func() {}, nil); err == nil {
			t.Error("arguments that cannot cross were sent")
		}
		var n int
		if _, err := c.Call(t.Context(), "echo", "text", &n); err == nil {
			t.Error("a text was read into an int")
		}
	})
}

// Call returns only when the handler has, and with the cause of the caller's context.
func TestCancel(t *testing.T) {
	each(t, func(t *testing.T, c *Conn) {
		why := errors.New("another step failed")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(20*time.Millisecond, func() { cancel(why) })
		if _, err := c.Call(ctx, "wait", nil, nil); err != why {
			t.Errorf("error %v", err)
		}
		if _, err := c.Call(ctx, "echo", "", nil); err != why {
			t.Errorf("a call after the end: %v", err)
		}
		late, cancel2 := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel2()
		var got string
		if _, err := c.Call(late, "late", nil, &got); err != nil || got != "done all the same" {
			t.Errorf("%q, %v", got, err)
		}
		short, cancel3 := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel3()
		if _, err := c.Call(short, "wait", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
	})
}

// Whoever dies, the other end learns at once: calls that wait, and calls to come.
func TestDeath(t *testing.T) {
	for name, kill := range map[string]func(c *Conn, cmd *exec.Cmd){
		"killed": func(_ *Conn, cmd *exec.Cmd) { cmd.Process.Kill() },
		"exit":   func(c *Conn, _ *exec.Cmd) { c.Call(context.Background(), "die", nil, nil) },
		"closed": func(c *Conn, _ *exec.Cmd) { c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			c, cmd := child(t)
			var calls sync.WaitGroup
			for range 20 {
				calls.Go(func() {
					if _, err := c.Call(t.Context(), "wait", nil, nil); !errors.Is(err, ErrDied) {
						t.Errorf("a waiting call: %v", err)
					}
				})
			}
			if _, err := c.Call(t.Context(), "pid", nil, nil); err != nil {
				t.Fatal(err)
			}
			waitPending(c, 20)
			start := time.Now()
			kill(c, cmd)
			calls.Wait()
			if _, err := c.Call(t.Context(), "pid", nil, nil); !errors.Is(err, ErrDied) {
				t.Errorf("a later call: %v", err)
			}
			cmd.Wait()
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("noticed after %v", d)
			}
		})
	}
}

func waitPending(c *Conn, n int) {
	for {
		c.mu.Lock()
		now := len(c.pending)
		c.mu.Unlock()
		if now >= n {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// A handler that does not listen to its context holds Serve for a second, no longer.
func TestServeEnds(t *testing.T) {
	c, f, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	release, entered := make(chan bool), make(chan bool)
	served := make(chan error, 1)
	go func() {
		served <- Serve(f, map[string]Handler{"deaf": func(context.Context, []byte, []*os.File) (any, []*os.File, error) {
			close(entered)
			<-release
			return nil, nil, nil
		}})
	}()
	called := make(chan error, 1)
	go func() { _, err := c.Call(context.Background(), "deaf", nil, nil); called <- err }()
	<-entered
	start := time.Now()
	c.Close()
	if err := <-called; !errors.Is(err, ErrDied) {
		t.Errorf("the call: %v", err)
	}
	if err := <-served; err != nil || time.Since(start) > lastWords+2*time.Second {
		t.Errorf("Serve: %v after %v", err, time.Since(start))
	}
	close(release)
}

// A process without room for the descriptors refuses the one call and goes on.
func TestNoRoomForFiles(t *testing.T) {
	c := within(t)
	if _, err := c.Call(t.Context(), "pid", nil, nil); err != nil {
		t.Fatal(err) // from here on, Serve needs no more descriptors of its own
	}
	f := memory(t, "")
	defer f.Close()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	tight := unix.Rlimit{Cur: uint64(f.Fd()) + 4, Max: old.Max}
	if err := syscall.Setrlimit(unix.RLIMIT_NOFILE, (*syscall.Rlimit)(&tight)); err != nil {
		t.Fatal(err)
	}
	_, err := c.Call(t.Context(), "echo", "", nil, f, f, f, f, f, f, f, f, f, f, f, f, f, f, f, f, f, f, f)
	if serr := syscall.Setrlimit(unix.RLIMIT_NOFILE, (*syscall.Rlimit)(&old)); serr != nil {
		t.Fatal(serr)
	}
	if err == nil || !strings.Contains(err.Error(), "too many open files") {
		t.Errorf("error %v", err)
	}
	if _, err := c.Call(t.Context(), "pid", nil, nil); err != nil {
		t.Errorf("the next call: %v", err)
	}
}

func FuzzReadFrame(f *testing.F) {
	for _, x := range []*frame{
		{kind: kindCall, id: 1, method: "echo", body: []byte{1, 2}},
		{kind: kindAnswer, id: 1<<64 - 1, body: []byte{0}},
		{kind: kindCancel},
	} {
		f.Add(append(x.header(), x.body...))
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add(bytes.Repeat([]byte{1}, headerSize))
	f.Fuzz(func(t *testing.T, text []byte) {
		r := bytes.NewReader(text)
		first := func(b []byte) (int, []*os.File, bool, error) {
			n, err := r.Read(b[:min(len(b), 5)])
			return n, nil, false, err
		}
		got, err := readFrame(r, first)
		if err != nil {
			if (err == io.EOF) != (len(text) == 0) {
				t.Errorf("error %v after %d bytes", err, len(text))
			}
			return
		}
		announced := text[13]
		again := append(got.header(), got.body...)
		again[13] = announced // descriptors do not come through a reader
		if !bytes.Equal(again, text[:len(text)-r.Len()]) {
			t.Errorf("%q is written again as %q", text, again)
		}
	})
}
