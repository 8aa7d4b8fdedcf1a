package exec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"

	"img/exec/sandbox"
	"img/registry/image"
)

// A ForeignError is a step for another platform whose program this machine cannot execute.
type ForeignError struct {
	// Platform is the step's, Host this machine's.
	Platform, Host string
	// Err is how the process ended.
	Err error
}

func (e *ForeignError) Error() string {
	return fmt.Sprintf("%v: this machine is %s and cannot execute programs for %s", e.Err, e.Host, e.Platform)
}

func (e *ForeignError) Unwrap() error { return e.Err }

// Hint is the remedy.
func (e *ForeignError) Hint() string {
	return "register an emulator for " + e.Platform + " with binfmt_misc, flag F (Debian: apt install qemu-user-static binfmt-support), " +
		"or let the step run here: FROM --platform=$BUILDPLATFORM"
}

// An ending keeps the end of what a step prints, and passes all of it on. The child that becomes the step's process reports an execve that
// failed there, and ends with exit code 255.
type ending struct {
	w    io.Writer
	last []byte
}

func (e *ending) Write(b []byte) (int, error) {
	const enough = 8 << 10 // a path, and the error
	e.last = append(e.last, b[max(0, len(b)-enough):]...)
	e.last = e.last[max(0, len(e.last)-enough):]
	return e.w.Write(b)
}

// notExecuted matches the report. "no such file" is what the kernel says of an emulator that is not in the step's root.
var notExecuted = regexp.MustCompile(`^exec .*: (exec format error|no such file or directory)$`)

// foreign explains the failure of a step that is for another platform.
func (e *ending) foreign(err error, platform string) error {
	var exit *sandbox.ExitError
	p, perr := image.ParsePlatform(platform)
	if !errors.As(err, &exit) || exit.Code != 255 || perr != nil || image.Runs(image.HostPlatform(), &p) {
		return err
	}
	lines := bytes.Split(bytes.TrimRight(e.last, "\n"), []byte("\n"))
	if !notExecuted.Match(lines[len(lines)-1]) {
		return err
	}
	return &ForeignError{Platform: platform, Host: image.FormatPlatform(image.HostPlatform()), Err: err}
}
