// Package fetch gets files from URLs and git repositories, and remembers them.
//
// What it has got lies below one directory of the state:
//
//	files/<hex of SHA-256>   the content of a URL; never changes
//	urls/<hash>              what a URL was when it was last asked for (a record, JSON)
//	git/<hash>/              a bare repository per remote
//	git/<hash>.lock          flocked by who uses the repository
//	git/config               the only configuration that git is given
//	tmp/                     downloads in the making, each flocked by its writer
//
// It does not know what the files are for. Credentials go to the host they are for and to nobody else; no address in an error has any.
package fetch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"img/cache/atomicfile"
)

// Options of New. The zero value fetches, and knows no secrets.
type Options struct {
	// Offline uses what is remembered and nothing else.
	Offline bool
	// Secret returns a secret by id; ok is false if there is none of that id.
	Secret func(id string) (data []byte, ok bool, err error)
	// SSHAgent is the socket of the agent whose keys git may use, "" for none.
	SSHAgent string
	// KnownHosts are the files with the keys of ssh hosts (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT").
	KnownHosts []string
	// Getenv reads the environment of the caller: proxies, certificates, PATH. Nil is os.Getenv.
	Getenv func(string) string
}

// A Client fetches for one build: what it has resolved once stays so until the Client is gone.
type Client struct {
	dir string
	o   Options
	web *http.Transport

	files   memo[*File]
	commits memo[Commit]
	sweep   sync.Once
}

// New makes a Client that remembers in a directory, which need not exist.
func New(dir string, o Options) *Client {
	if o.Secret == nil {
		o.Secret = func(string) ([]byte, bool, error) { return nil, false, nil }
	}
	if o.Getenv == nil {
		o.Getenv = os.Getenv
	}
	return &Client{dir: dir, o: o, web: newTransport()}
}

// Close gives up connections.
func (c *Client) Close() { c.web.CloseIdleConnections() }

// An Error says what could not be fetched. Its address has no user, password or query.
type Error struct {
	Address string
	Err     error
	// Remedy is what to do about it, "" if that is not known.
	Remedy string
}

func (e *Error) Error() string { return fmt.Sprintf("fetch %s: %v", e.Address, e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// failure wraps an error, unless it is one already.
func failure(address string, err error) error {
	var known *Error
	var wrapped *url.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	if errors.As(err, &wrapped) {
		err = wrapped.Err // its text has the whole address
	}
	e := &Error{Address: Redact(address), Err: err}
	var hinted interface{ Hint() string }
	if errors.As(err, &hinted) {
		e.Remedy = hinted.Hint()
	}
	return e
}

// hinted is an error with a remedy.
type hintError struct {
	error
	hint string
}

func (e hintError) Unwrap() error { return e.error }
func (e hintError) Hint() string  { return e.hint }

// Redact is an address without what only its owner should see: user, password, query.
func Redact(address string) string {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		address, _, _ = strings.Cut(address, "?")
		return address
	}
	if u.RawQuery != "" {
		u.RawQuery = "…"
	}
	u.User, u.Fragment, u.RawFragment = nil, "", ""
	return u.String()
}

// errOffline is what --offline forbids.
var errOffline = hintError{errors.New("not fetched before, and --offline forbids to do it now"), "a build without --offline remembers it"}

// A memo does work once per key; what fails is done again by the next who asks.
type memo[T any] struct {
	mu   sync.Mutex
	made map[string]*made[T]
}

type made[T any] struct {
	turn  chan struct{} // holds a token while somebody works
	done  bool
	value T
}

func (m *memo[T]) do(ctx context.Context, key string, work func() (T, error)) (T, error) {
	m.mu.Lock()
	if m.made == nil {
		m.made = map[string]*made[T]{}
	}
	e := m.made[key]
	if e == nil {
		e = &made[T]{turn: make(chan struct{}, 1)}
		m.made[key] = e
	}
	m.mu.Unlock()
	select {
	case e.turn <- struct{}{}:
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
	defer func() { <-e.turn }()
	if e.done {
		return e.value, nil
	}
	v, err := work()
	if err == nil {
		e.value, e.done = v, true
	}
	return v, err
}

func hashName(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%q\n", p)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// sub makes a directory of the client's and returns its path.
func (c *Client) sub(name string) (string, error) {
	dir := filepath.Join(c.dir, name)
	return dir, atomicfile.MkdirAll(dir)
}
