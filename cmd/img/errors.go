package main

// The rules of output:
//
//   - Results go to standard output, everything else to standard error.
//   - What img itself says begins with "img: ": no capital, no full stop, one sentence.
//     "img: error: " ends the run, "img: warning: " and "img: note: " do not, "img: hint: " says what to do about it.
//   - A place is FILE:LINE:COLUMN, followed by the lines with >>> in front of the guilty ones.
//   - What an input said passes progress.Clean.
//   - Exit codes are the exit* constants, chosen in exitCode alone.

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"img/cmd/img/progress"
	"img/dag"
	"img/dag/dockerfile"
	"img/engine"
	"img/exec"
	"img/exec/fetch"
	"img/exec/sandbox"
	"img/registry"
	"img/userns"
)

// Exit codes. Codes of signals are 128 + the signal's number.
const (
	exitOK       = 0
	exitBuild    = 1   // the build failed
	exitUsage    = 2   // the command line or the Dockerfile is wrong
	exitFindings = 3   // --check found something
	exitSource   = 10  // a source, a registry or credentials
	exitPush     = 11  // a push
	exitHost     = 20  // this host is not able
	exitBug      = 100 // a bug of ours
)

// A coded is an error whose exit code, and perhaps hint, is known where it happens.
type coded struct {
	err  error
	code int
	hint string
}

func (e *coded) Error() string { return e.err.Error() }
func (e *coded) Unwrap() error { return e.err }

// withCode gives err an exit code; nil stays nil.
func withCode(code int, err error) error {
	if err == nil {
		return nil
	}
	return &coded{err: err, code: code}
}

// withHint gives err an exit code and a hint; nil stays nil.
func withHint(code int, err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &coded{err: err, code: code, hint: fmt.Sprintf(format, args...)}
}

// usagef is a mistake on the command line.
func usagef(format string, args ...any) error {
	return &coded{err: fmt.Errorf(format, args...), code: exitUsage}
}

// sourceError is a failure of a source, a registry or credentials; pushError of a push.
func sourceError(err error) error { return withCode(exitSource, err) }
func pushError(err error) error   { return withCode(exitPush, err) }

// notef and warnf say something that does not end the run.
func notef(w io.Writer, format string, args ...any) { say(w, "note", fmt.Sprintf(format, args...)) }
func warnf(w io.Writer, format string, args ...any) { say(w, "warning", fmt.Sprintf(format, args...)) }

func say(w io.Writer, kind, text string) {
	fmt.Fprintf(w, "img: %s: %s\n", kind, progress.Clean(text))
}

// warnDockerfile says a finding about the Dockerfile.
func warnDockerfile(w io.Writer, f dockerfile.Warning) {
	text := f.Text
	if f.Rule != "" {
		text += " (" + f.Rule + ")"
	}
	if !f.Pos.IsZero() {
		text = f.Pos.String() + ": " + text
	}
	say(w, "warning", text)
}

// report says what went wrong, if anything did, and returns the exit code.
func report(ctx context.Context, g *Globals, err error) int {
	if err == nil {
		return exitOK
	}
	if !errors.As(err, &said{}) {
		sayError(g, err)
	}
	return exitCode(ctx, err)
}

// sayError says what went wrong, where, and what to do about it.
func sayError(g *Globals, err error) {
	pos, text := describe(err)
	if pos.File != "" {
		text = pos.String() + ": " + text
	}
	say(g.stderr, "error", strings.TrimRight(g.state.named(text), "\n"))
	if !pos.IsZero() {
		fmt.Fprint(g.stderr, excerpt(pos, g.sources[pos.File]))
	}
	if with := with(err); with != "" {
		say(g.stderr, "note", with)
	}
	if h := hint(err, g); h != "" {
		say(g.stderr, "hint", h)
	}
}

// exitCode chooses the exit code. What stands first wins: a build that a signal ended is interrupted, whatever its
// steps said when they were stopped.
func exitCode(ctx context.Context, err error) int {
	var stopped interrupted
	if errors.As(context.Cause(ctx), &stopped) || errors.As(err, &stopped) {
		return stopped.code()
	}
	var done said
	if errors.As(err, &done) {
		return done.code
	}
	var host *userns.Error
	if errors.As(err, &host) || isDiskFull(err) {
		return exitHost
	}
	var known *coded
	if errors.As(err, &known) {
		return known.code
	}
	if damaged := (*exec.DamagedError)(nil); errors.As(err, &damaged) {
		return exitSource
	}
	var gone *fetch.Error
	if errors.As(err, &gone) {
		return exitSource
	}
	var bad *dockerfile.Error
	var stream *dag.StreamError
	if errors.As(err, &bad) || errors.As(err, &stream) {
		return exitUsage
	}
	var bug *crash
	if errors.As(err, &bug) {
		return exitBug
	}
	return exitBuild
}

// describe splits an error into the place, if it has one, and the words.
func describe(err error) (dag.Pos, string) {
	var vertex *engine.VertexError
	var bad *dockerfile.Error
	var stream *dag.StreamError
	var p *placed
	if errors.As(err, &p) && !p.pos.IsZero() {
		_, text := describe(p.err)
		return p.pos, text
	}
	switch {
	case errors.As(err, &vertex):
		text := vertex.Err.Error()
		if exit := exitText(vertex); exit != "" {
			text = exit
		}
		if vertex.Vertex.Pos.IsZero() {
			text = vertex.Vertex.Name + ": " + text
		}
		return vertex.Vertex.Pos, text
	case errors.As(err, &bad):
		return bad.Pos, bad.Err.Error()
	case errors.As(err, &stream):
		return stream.Pos, stream.Text()
	}
	return dag.Pos{}, err.Error()
}

// exitText is BuildKit's sentence for a RUN whose process failed; tools look for it.
func exitText(e *engine.VertexError) string {
	var exit *sandbox.ExitError
	run, ok := e.Vertex.Op.(*dag.Run)
	if !ok || !errors.As(e.Err, &exit) {
		return ""
	}
	how := fmt.Sprintf("exit code: %d", exit.Code)
	if exit.Signal > 0 {
		how = fmt.Sprintf("killed by signal %d (%s)", exit.Signal, syscall.Signal(exit.Signal))
	}
	if exit.Msg != "" {
		how += ": " + exit.Msg
	}
	var foreign *exec.ForeignError
	if errors.As(e.Err, &foreign) {
		how += fmt.Sprintf(": this machine is %s and cannot execute programs for %s", foreign.Host, foreign.Platform)
	}
	return fmt.Sprintf("process %q did not complete successfully: %s", strings.Join(run.Args, " "), how)
}

// with says what the variables stand for that led to an error.
func with(err error) string {
	var p *placed
	var bad *dockerfile.Error
	switch {
	case errors.As(err, &p):
		return p.with
	case errors.As(err, &bad):
		return bad.With
	}
	return ""
}

// hint is what to do about an error, "" if we do not know.
func hint(err error, g *Globals) string {
	var known *coded
	var host *userns.Error
	var missing *exec.MissingError
	var bad *dockerfile.Error
	var gone *exec.NotFoundError
	var unfetched *fetch.Error
	var foreign *exec.ForeignError
	var bug *crash
	var stream *dag.StreamError
	var p *placed
	switch {
	case errors.As(err, &p) && p.hint != "":
		return p.hint
	case errors.As(err, &known) && known.hint != "":
		return known.hint
	case errors.As(err, &stream):
		return streamHint(stream)
	case errors.As(err, &host):
		return host.Remedy
	case errors.As(err, &missing):
		return missing.Remedy
	case isDiskFull(err):
		return diskHint(err, g)
	case errors.As(err, &bad) && strings.HasPrefix(bad.Hint, "did you mean"):
		return bad.Hint
	case registryHint(err) != "":
		return registryHint(err)
	case errors.As(err, &bad):
		return bad.Hint
	case errors.As(err, &gone):
		return gone.Hint()
	case errors.As(err, &unfetched) && unfetched.Remedy != "":
		return unfetched.Remedy
	case errors.As(err, &foreign):
		return foreign.Hint()
	case errors.As(err, &bug):
		return "this is a bug in img; the stack above belongs into the report"
	}
	return ""
}

// registryHint is what to do where a registry cannot be reached or wants to know who asks.
func registryHint(err error) string {
	var answer *registry.Error
	var cert *tls.CertificateVerificationError
	var dns *net.DNSError
	switch {
	case errors.As(err, &answer) && answer.Unauthorized():
		return fmt.Sprintf("`img login %s` stores credentials; many registries answer so where the name is wrong, too", answer.Registry)
	case errors.As(err, &cert):
		return "SSL_CERT_FILE=FILE names the authority that signed it; --insecure-registry takes any certificate"
	case errors.As(err, &dns) && strings.HasSuffix(dns.Name, "docker.io"):
		return "without a network, `img load` and `img import` bring images in"
	case errors.As(err, &dns) && dns.IsNotFound:
		return fmt.Sprintf("%s, the first part of the name, was taken for the registry's host", dns.Name)
	}
	return ""
}

func isDiskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// diskHint names the state's file system, which is the one that is full unless the error or fullDest knew better.
func diskHint(err error, g *Globals) string {
	var at *os.PathError
	if errors.As(err, &at) && at.Path == os.Stdout.Name() {
		return "where standard output goes there is no room"
	}
	if at != nil && filepath.IsAbs(at.Path) && isDir(filepath.Dir(at.Path)) {
		if said := fullElsewhere(g, at.Path, err); said != "" {
			return said
		}
	}
	const prune = "`img prune` frees what no image needs"
	dir, stateErr := g.stateDir()
	if stateErr != nil {
		return prune
	}
	if said := freeSpace(dir, err); said != "" {
		return said + "; " + prune
	}
	return prune
}

// freeSpace says what the file system of a directory has left, "" if it cannot be asked.
func freeSpace(dir string, err error) string {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return ""
	}
	free := humanSize(int64(st.Bavail) * st.Bsize)
	if errors.Is(err, syscall.EDQUOT) {
		return fmt.Sprintf("the quota for %s is used up (the file system has %s free)", dir, free)
	}
	return fmt.Sprintf("the file system of %s has %s and %d inodes free", dir, free, st.Ffree)
}

// fullDest gives the error of a result that found no room a hint about its own place, unless that is the state's as well.
func fullDest(g *Globals, dest string, err error) error {
	said := ""
	if isDiskFull(err) {
		said = fullElsewhere(g, dest, err)
	}
	if said == "" {
		return err
	}
	return withHint(exitHost, err, "%s", said)
}

// fullElsewhere says what room there is for a file, "" if it is on the state's file system.
func fullElsewhere(g *Globals, dest string, err error) string {
	dir := dest
	for !isDir(dir) && dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
	}
	var there, state unix.Statfs_t
	home, stateErr := g.stateDir()
	if stateErr != nil || unix.Statfs(dir, &there) != nil || unix.Statfs(home, &state) != nil || there.Fsid == state.Fsid {
		return ""
	}
	return freeSpace(dir, err)
}

// A crash is a panic that was caught, with its stack printed already.
type crash struct{ value any }

func (e *crash) Error() string { return fmt.Sprintf("internal error: %v", e.value) }

// usageError makes a mistake that kong found ours.
func usageError(args []string, err error) error {
	var known *coded
	if err == nil || errors.As(err, &known) {
		return err
	}
	if a := lookAlike(args); a != "" {
		return withHint(exitUsage, err, "%q begins with a dash that is not the ASCII one; type %q", a, ascii(a))
	}
	if rest, ok := strings.CutPrefix(err.Error(), "unexpected argument "); ok && len(args) > 0 && rest == firstWord(args) {
		return withHint(exitUsage, fmt.Errorf("'%s' is not an img command", rest), "see 'img --help'")
	}
	return withCode(exitUsage, err)
}

// dashes are what editors and web pages make of "--".
const dashes = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"

func lookAlike(args []string) string {
	for _, a := range args {
		if a == "--" {
			break
		}
		if strings.IndexAny(a, dashes) == 0 {
			return a
		}
	}
	return ""
}

// ascii is what was meant by an option with another dash: "–t" is -t, "—tag" is --tag.
func ascii(option string) string {
	name := strings.TrimLeft(option, dashes+"-")
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

func firstWord(args []string) string {
	for _, a := range args {
		if !strings.HasPrefix(a, "-") {
			return a
		}
	}
	return ""
}
