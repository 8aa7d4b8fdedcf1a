package fetch

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"img/cache/atomicfile"
)

// Bounds on what a server may do.
const (
	maxRedirects = 10
	maxTries     = 4
	maxHeader    = 1 << 20 // bytes
	// silence is how long a server may say nothing.
	silence = 60 * time.Second
	// firstPause doubles with every try; a server may ask for as much as longestPause.
	firstPause   = 500 * time.Millisecond
	longestPause = 30 * time.Second
)

// A Request names what is wanted.
type Request struct {
	// URL is http or https.
	URL string
	// Checksum is the digest that the content must have, "" for any: "sha256:…", "sha384:…" or "sha512:…".
	Checksum string
	// Progress, if set, is told how many bytes there are, again and again while they come.
	Progress func(bytes int64)
}

// A File is the content of a URL.
type File struct {
	// Digest is the SHA-256, "sha256:…".
	Digest string
	// Size is in bytes.
	Size int64
	// Modified is the server's Last-Modified in whole seconds, or the beginning of 1970.
	Modified time.Time

	path string
}

// Open opens the content for reading.
func (f *File) Open() (*os.File, error) { return os.Open(f.path) }

// A record is what is remembered of a URL.
type record struct {
	// URL is for people, without its secrets.
	URL      string
	Digest   string
	Size     int64
	ETag     string `json:",omitempty"`
	Modified string `json:",omitempty"` // Last-Modified as the server wrote it
}

func (r *record) file(c *Client) (*File, error) {
	f := &File{Digest: r.Digest, Size: r.Size, Modified: time.Unix(0, 0), path: c.contentPath(r.Digest)}
	if t, err := http.ParseTime(r.Modified); err == nil {
		f.Modified = t
	}
	st, err := os.Stat(f.path)
	if err == nil && st.Size() != r.Size {
		err = fmt.Errorf("%s has %d bytes, not %d", f.path, st.Size(), r.Size)
	}
	return f, err
}

func (c *Client) contentPath(digest string) string {
	return filepath.Join(c.dir, "files", strings.TrimPrefix(digest, "sha256:"))
}

// HTTP returns the content of a URL. What is remembered is asked for again only if the server has another by now; with a checksum
// of what is remembered there is no request at all. Errors are an *Error.
func (c *Client) HTTP(ctx context.Context, r Request) (*File, error) {
	f, err := c.files.do(ctx, r.URL+"\n"+r.Checksum, func() (*File, error) { return c.http(ctx, r) })
	return f, failure(r.URL, err)
}

func (c *Client) http(ctx context.Context, r Request) (*File, error) {
	u, err := url.Parse(r.URL)
	if err == nil && u.Scheme != "http" && u.Scheme != "https" || err == nil && u.Host == "" {
		err = errors.New("not an http or https URL")
	}
	if err != nil {
		return nil, err
	}
	if r.Checksum != "" && newHash(r.Checksum) == nil {
		return nil, fmt.Errorf("unsupported digest algorithm in checksum %s", r.Checksum)
	}
	last := c.remembered(r.URL)
	if f := c.sure(ctx, r, last); f != nil {
		return f, nil
	}
	if c.o.Offline {
		return c.offline(ctx, r, last)
	}
	return c.revalidate(ctx, r, u, last)
}

// remembered reads the record of a URL, nil if there is none or what it names is gone.
func (c *Client) remembered(address string) *record {
	r := readRecord(c.recordPath(address))
	if r == nil {
		return nil
	}
	f, err := r.file(c)
	if err != nil {
		return nil
	}
	now := time.Now()
	_ = os.Chtimes(f.path, now, now) // prune frees first what was not used for long; not every user may say so
	return r
}

func (c *Client) recordPath(address string) string {
	return filepath.Join(c.dir, "urls", hashName(address))
}

// sure returns what is remembered if its checksum says that it is what is wanted.
func (c *Client) sure(ctx context.Context, r Request, last *record) *File {
	if r.Checksum == "" || last == nil {
		return nil
	}
	if f, err := last.file(c); err == nil && matches(ctx, f, r.Checksum) == nil {
		return f
	}
	return nil
}

func (c *Client) offline(ctx context.Context, r Request, last *record) (*File, error) {
	if last == nil {
		return nil, errOffline
	}
	f, err := last.file(c)
	if err != nil {
		return nil, err
	}
	return f, matches(ctx, f, r.Checksum)
}

// matches compares a file with the checksum that it must have.
func matches(ctx context.Context, f *File, want string) error {
	got := f.Digest
	if algorithm, _, _ := strings.Cut(want, ":"); algorithm != "" && algorithm != "sha256" {
		in, err := f.Open()
		if err != nil {
			return err
		}
		defer in.Close()
		h := newHash(want)
		if _, err := io.Copy(h, reader{ctx, in}); err != nil {
			return err
		}
		got = algorithm + ":" + hex.EncodeToString(h.Sum(nil))
	}
	if want != "" && got != want {
		return fmt.Errorf("digest mismatch: got %s (expected: %s)", got, want)
	}
	return nil
}

// newHash is the hash that a digest is made by, nil if img does not know it.
func newHash(digest string) hash.Hash {
	switch algorithm, _, _ := strings.Cut(digest, ":"); algorithm {
	case "sha256":
		return sha256.New()
	case "sha384":
		return sha512.New384()
	case "sha512":
		return sha512.New()
	}
	return nil
}

// revalidate asks the server, and downloads unless it still has what is remembered.
func (c *Client) revalidate(ctx context.Context, r Request, u *url.URL, last *record) (*File, error) {
	d := &download{c: c, url: u, last: last, hash: sha256.New(), progress: r.Progress}
	defer d.close()
	if err := d.authorize(); err != nil {
		return nil, err
	}
	if err := d.run(ctx); err != nil {
		return nil, err
	}
	if d.same {
		f, err := last.file(c)
		if err != nil {
			return nil, err
		}
		return f, matches(ctx, f, r.Checksum)
	}
	got := &File{Digest: d.digest(), path: d.file.Name()}
	if err := matches(ctx, got, r.Checksum); err != nil {
		return nil, err
	}
	return d.publish(r.URL)
}

func (c *Client) remember(address string, r *record) error {
	if _, err := c.sub("urls"); err != nil {
		return err
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return atomicfile.Write(c.recordPath(address), append(data, '\n'), atomicfile.Options{Mode: 0o600})
}

// A download is one URL on its way into a file. A try that is cut goes on where the last one ended, if the server can do that.
type download struct {
	c    *Client
	url  *url.URL
	last *record
	auth string
	// progress may be nil.
	progress func(bytes int64)

	// same says that what is remembered is still right.
	same bool
	// file holds what came so far, size bytes with hash.
	file *os.File
	size int64
	hash hash.Hash
	// etag and modified describe the content; whole says that it is coded in a way that cannot be cut.
	etag, modified string
	whole          bool
}

// Secrets with what to tell a host, as BuildKit names them.
const (
	headerSecret = "HTTP_AUTH_HEADER_"
	tokenSecret  = "HTTP_AUTH_TOKEN_"
)

// authorize reads the credentials for the URL's host, if there are any. A token wins over a header.
func (d *download) authorize() error {
	for _, s := range []struct{ id, prefix string }{{headerSecret, ""}, {tokenSecret, "Bearer "}} {
		id := s.id + d.url.Hostname()
		data, ok, err := d.c.o.Secret(id)
		if err != nil {
			return fmt.Errorf("secret %s: %w", id, err)
		}
		if ok {
			d.auth = s.prefix + strings.TrimRight(string(data), "\r\n")
		}
	}
	return nil
}

// run tries until the content is there.
func (d *download) run(ctx context.Context) error {
	pause := firstPause
	for try := 1; ; try++ {
		err := d.try(ctx)
		var again *retryError
		switch {
		case err == nil || ctx.Err() != nil:
			return err
		case !errors.As(err, &again):
			return err
		case try == maxTries:
			return again.err
		}
		wait := max(pause, min(again.after, longestPause))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		pause *= 2
	}
}

// A retryError is worth another try.
type retryError struct {
	err   error
	after time.Duration
}

func (e *retryError) Error() string { return e.err.Error() }
func (e *retryError) Unwrap() error { return e.err }

var errSilence = fmt.Errorf("the server said nothing for %v", silence)

func (d *download) try(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	quiet := time.AfterFunc(silence, func() { cancel(errSilence) })
	defer quiet.Stop()
	resp, err := d.ask(ctx)
	if err != nil {
		return d.failed(ctx, err)
	}
	defer resp.Body.Close()
	body, err := d.answer(resp)
	if body == nil || err != nil {
		return err
	}
	quiet.Reset(silence)
	err = d.take(ticking{body, func() { quiet.Reset(silence) }})
	return d.failed(ctx, err)
}

// failed tells errors that may go away from others.
func (d *download) failed(ctx context.Context, err error) error {
	var full *writeError
	var refused *redirectError
	var op *net.OpError
	var dns *net.DNSError
	var wrapped *url.Error
	switch {
	case err == nil || errors.As(err, &full):
		return err
	case errors.As(err, &refused):
		return refused
	case errors.Is(context.Cause(ctx), errSilence):
		return &retryError{err: errSilence}
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &dns) && dns.IsNotFound, errors.As(err, &op) && op.Op == "dial" && errors.Is(err, unix.ECONNREFUSED):
		return unwrapURL(err)
	case errors.As(err, &wrapped) && strings.Contains(wrapped.Err.Error(), "tls: "):
		return wrapped.Err
	}
	return &retryError{err: unwrapURL(err)}
}

func unwrapURL(err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}

// ask sends the request: conditional if something is remembered, for the rest if a part is there.
func (d *download) ask(ctx context.Context) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "img")
	if d.auth != "" {
		req.Header.Set("Authorization", d.auth)
	}
	switch validator := d.validator(); {
	case d.size > 0 && validator != "" && !d.whole:
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", d.size))
		req.Header.Set("If-Range", validator)
	case d.last != nil && d.last.ETag != "":
		req.Header.Set("If-None-Match", d.last.ETag)
	case d.last != nil && d.last.Modified != "":
		req.Header.Set("If-Modified-Since", d.last.Modified)
	}
	client := &http.Client{Transport: d.c.web, CheckRedirect: d.checkRedirect}
	return client.Do(req)
}

// validator is what tells whether the content is still that of which a part is there: a weak tag does not.
func (d *download) validator() string {
	if d.etag != "" && !strings.HasPrefix(d.etag, "W/") {
		return d.etag
	}
	return d.modified
}

// A redirectError is a redirection that is not followed.
type redirectError struct{ to, why string }

func (e *redirectError) Error() string { return fmt.Sprintf("redirected to %s: %s", e.to, e.why) }

// checkRedirect decides whether to go where a server sends us. Credentials stay behind where the host changes, for good.
func (d *download) checkRedirect(req *http.Request, via []*http.Request) error {
	refuse := func(why string) error { return &redirectError{Redact(req.URL.String()), why} }
	req.Header.Del("Referer") // it has the query of where we were
	from := via[len(via)-1].URL
	switch {
	case len(via) >= maxRedirects:
		return refuse(fmt.Sprintf("more than %d redirects", maxRedirects))
	case req.URL.Scheme != "http" && req.URL.Scheme != "https":
		return refuse("only http and https are followed")
	case from.Scheme == "https" && req.URL.Scheme == "http":
		return refuse("from https to http is not safe")
	}
	if inward(d.url.Hostname()) {
		return d.keepFrom(req, via)
	}
	if inward(req.URL.Hostname()) {
		return refuse("from another host to this one")
	}
	if proxy, err := http.ProxyFromEnvironment(req); err == nil && proxy == nil && req.URL.Hostname() != d.url.Hostname() {
		*req = *req.WithContext(context.WithValue(req.Context(), outward{}, true))
	}
	return d.keepFrom(req, via)
}

// keepFrom takes the credentials out of a request that goes to another host, or comes from one.
func (d *download) keepFrom(req *http.Request, via []*http.Request) error {
	foreign := req.URL.Host != d.url.Host || req.URL.Scheme != d.url.Scheme
	for _, v := range via {
		foreign = foreign || v.URL.Host != d.url.Host || v.URL.Scheme != d.url.Scheme
	}
	if foreign {
		req.Header.Del("Authorization")
		req.Header.Del("Cookie")
		req.URL.User = nil
	}
	return nil
}

// outward marks requests that must not reach this machine: a server elsewhere asks for them.
type outward struct{}

// inward reports whether a host's name says that it is this machine or its link.
func inward(host string) bool {
	if host = strings.TrimSuffix(strings.ToLower(host), "."); host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && inwardAddr(addr)
}

func inwardAddr(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsLoopback() || a.IsUnspecified() || a.IsLinkLocalUnicast() || a.IsLinkLocalMulticast()
}

// answer reads the head of a response. body is nil if there is nothing more to read.
func (d *download) answer(resp *http.Response) (body io.Reader, err error) {
	etag, modified := resp.Header.Get("ETag"), resp.Header.Get("Last-Modified")
	switch code := resp.StatusCode; {
	case code == http.StatusNotModified && d.last != nil && d.size == 0:
		d.same = true
		return nil, nil
	case code == http.StatusPartialContent && d.continues(resp, etag, modified):
		return resp.Body, nil
	case code == http.StatusOK:
		// Some servers have tags, but do not compare them.
		if d.last != nil && etag != "" && strings.TrimPrefix(etag, "W/") == strings.TrimPrefix(d.last.ETag, "W/") {
			d.same = true
			return nil, nil
		}
		d.etag, d.modified, d.whole = etag, modified, resp.Uncompressed
		return resp.Body, d.restart()
	case code == http.StatusRequestedRangeNotSatisfiable && d.size > 0, code == http.StatusPartialContent:
		return nil, errors.Join(d.restart(), &retryError{err: fmt.Errorf("the server cannot go on at byte %d", d.size)})
	case code == http.StatusTooManyRequests, code == http.StatusRequestTimeout, code >= 500:
		after, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
		return nil, &retryError{err: statusError(code), after: time.Duration(max(after, 0)) * time.Second}
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		return nil, hintError{statusError(code), fmt.Sprintf("--secret id=%s%s,src=FILE gives a token for that host", tokenSecret, d.url.Hostname())}
	default:
		return nil, statusError(code)
	}
}

type statusError int

func (e statusError) Error() string {
	return strings.TrimSpace(fmt.Sprintf("invalid response status %d %s", int(e), http.StatusText(int(e))))
}

// continues reports whether a partial response is exactly the rest.
func (d *download) continues(resp *http.Response, etag, modified string) bool {
	rest := fmt.Sprintf("bytes %d-", d.size)
	return d.size > 0 && strings.HasPrefix(resp.Header.Get("Content-Range"), rest) && !resp.Uncompressed &&
		resp.Header.Get("Content-Encoding") == "" && (etag == "" || etag == d.etag) && (modified == "" || modified == d.modified)
}

// restart forgets what came so far.
func (d *download) restart() error {
	d.size = 0
	d.hash.Reset()
	if d.file == nil {
		return d.create()
	}
	if err := d.file.Truncate(0); err != nil {
		return &writeError{err}
	}
	_, err := d.file.Seek(0, io.SeekStart)
	return err
}

// create makes the temporary file. It is flocked, so that others know that somebody writes it.
func (d *download) create() error {
	dir, err := d.c.sub("tmp")
	if err != nil {
		return err
	}
	d.c.sweep.Do(func() { sweep(dir) })
	f, err := os.CreateTemp(dir, "url-")
	if err != nil {
		return err
	}
	d.file = f
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	return atomicfile.Inherit(f.Name())
}

// sweep deletes what killed processes left. What is empty may be about to be locked.
func sweep(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			continue
		}
		if st, err := f.Stat(); err == nil && st.Size() > 0 && unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			os.Remove(f.Name())
		}
		f.Close()
	}
}

// close deletes what was not published.
func (d *download) close() {
	if d.file != nil {
		os.Remove(d.file.Name())
		d.file.Close()
	}
}

// A writeError is this machine's, not the server's.
type writeError struct{ error }

func (e *writeError) Unwrap() error { return e.error }

// take writes what comes.
func (d *download) take(body io.Reader) error {
	buf := make([]byte, 256<<10)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			if _, werr := d.file.Write(buf[:n]); werr != nil {
				return &writeError{fmt.Errorf("write: %w", werr)}
			}
			d.hash.Write(buf[:n])
			d.size += int64(n)
			if d.progress != nil {
				d.progress(d.size)
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

func (d *download) digest() string { return "sha256:" + hex.EncodeToString(d.hash.Sum(nil)) }

// publish gives the content its name, and remembers it as the URL's.
func (d *download) publish(address string) (*File, error) {
	if _, err := d.c.sub("files"); err != nil {
		return nil, err
	}
	r := &record{URL: Redact(address), Digest: d.digest(), Size: d.size, ETag: d.etag, Modified: d.modified}
	if err := os.Rename(d.file.Name(), d.c.contentPath(r.Digest)); err != nil {
		return nil, err
	}
	f, err := r.file(d.c)
	if err != nil {
		return nil, err
	}
	return f, d.c.remember(address, r)
}

// ticking tells somebody about each read.
type ticking struct {
	r    io.Reader
	tick func()
}

func (t ticking) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.tick()
	return n, err
}

// A reader ends with its context.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}

func newTransport() *http.Transport {
	dialer := func(ctx context.Context, network, addr string) (net.Conn, error) {
		d := &net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}
		if ctx.Value(outward{}) != nil {
			d.Control = refuseInward
		}
		return d.DialContext(ctx, network, addr)
	}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: dialer, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 30 * time.Second,
		ResponseHeaderTimeout: silence, IdleConnTimeout: 30 * time.Second, MaxResponseHeaderBytes: maxHeader,
	}
}

// refuseInward is asked when the address of a host is known.
func refuseInward(_, address string, _ syscall.RawConn) error {
	a, err := netip.ParseAddrPort(address)
	if err == nil && inwardAddr(a.Addr()) {
		return &redirectError{a.Addr().String(), "from another host to this one"}
	}
	return nil
}
