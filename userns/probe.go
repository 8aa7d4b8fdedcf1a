package userns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// probeTime is how long one probe may take.
const probeTime = 2 * time.Second

// probes are what a child tries in its namespaces.
var probes = map[string]func() error{
	"namespaces": Settle,
	"mount":      func() error { return mountOn("tmpfs", "/proc") },
	"proc":       func() error { return mountOn("proc", "/proc") },
	"binfmt":     func() error { return mountOn("binfmt_misc", "/proc") },
	"overlay":    tryOverlay,
}

// probe tries one thing, says on descriptor 3 how it went ("<errno> <error>", or nothing), and ends the process.
func probe(args []string) {
	try, ok := probes[args[0]]
	if !ok || os.Getpid() != 1 {
		fmt.Fprintf(os.Stderr, "%s is for this program's own use\n", probeWord)
		os.Exit(2)
	}
	if err := try(); err != nil {
		var errno syscall.Errno
		errors.As(err, &errno)
		fmt.Fprintf(os.NewFile(3, "answer"), "%d %v", int(errno), err)
		os.Exit(1)
	}
	os.Exit(0)
}

// mountOn mounts a new file system. Its mount namespace is the probe's own and ends with it.
func mountOn(kind, target string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make / private: %w", err)
	}
	if err := unix.Mount(kind, target, kind, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount %s: %w", kind, err)
	}
	return nil
}

// tryOverlay mounts an overlay in the working directory as builds do, and deletes a file of its lower layer, which makes a
// whiteout.
func tryOverlay() error {
	for _, dir := range []string{"lower", "lower/d", "upper", "work", "merged"} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make / private: %w", err)
	}
	const options = "userxattr,lowerdir=lower,upperdir=upper,workdir=work"
	if err := unix.Mount("overlay", "merged", "overlay", 0, options); err != nil {
		return fmt.Errorf("mount overlay: %w", err)
	}
	err := os.Remove("merged/d")
	if uerr := unix.Unmount("merged", 0); err == nil && uerr != nil {
		err = fmt.Errorf("unmount overlay: %w", uerr)
	}
	// The first process may lack the rights over what belongs to mapped ids.
	for _, dir := range []string{"lower", "upper", "work", "merged"} {
		if rerr := os.RemoveAll(dir); err == nil {
			err = rerr
		}
	}
	return err
}

// try runs a probe in a child, and says with which mapping. dir is where; it may be nil.
func try(ctx context.Context, m Mapping, name string, dir *os.File) (Mapping, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	said, say, err := os.Pipe()
	if err != nil {
		return m, err
	}
	defer said.Close()
	p, err := Start(ctx, Config{Mapping: m, Args: []string{"img", probeWord, name}, Files: []*os.File{say}, Dir: dir})
	say.Close()
	if err != nil {
		return m, err
	}
	stop := context.AfterFunc(ctx, func() { p.process.Kill() })
	defer stop()
	text, rerr := io.ReadAll(io.LimitReader(said, 4096))
	werr := p.Wait()
	switch {
	case ctx.Err() != nil:
		return p.Mapping, fmt.Errorf("no answer within %v", probeTime)
	case len(text) > 0:
		return p.Mapping, probeError(string(text))
	case rerr != nil:
		return p.Mapping, rerr
	}
	return p.Mapping, werr
}

// A told is an error of a probe: its text, and the errno within.
type told struct {
	text  string
	errno syscall.Errno
}

func (e *told) Error() string { return e.text }
func (e *told) Unwrap() error { return e.errno }

func probeError(said string) error {
	number, text, _ := strings.Cut(said, " ")
	n, err := strconv.Atoi(number)
	if err != nil || n <= 0 {
		return errors.New(said)
	}
	return &told{text, syscall.Errno(n)}
}
