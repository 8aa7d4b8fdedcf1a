package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"img/registry/image"
)

var accept = strings.Join([]string{
	string(types.OCIImageIndex), string(types.OCIManifestSchema1), string(types.DockerManifestList), string(types.DockerManifestSchema2),
}, ", ")

// Resolve returns the descriptor that a reference stands for now.
func (c *Client) Resolve(ctx context.Context, ref string) (v1.Descriptor, error) {
	r, id, err := c.open(ref)
	if err != nil {
		return v1.Descriptor{}, err
	}
	d, err := r.resolve(ctx, id)
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("resolve %s: %w", ref, err)
	}
	return d, nil
}

// Tag makes ref name the manifest with these bytes (it is pushed under the tag).
func (c *Client) Tag(ctx context.Context, ref string, d v1.Descriptor, manifest []byte) error {
	r, id, err := c.open(ref)
	if err != nil {
		return err
	}
	if int64(len(manifest)) != d.Size || image.Digest(manifest) != d.Digest {
		return fmt.Errorf("push %s: bytes are not those of %s", ref, d.Digest)
	}
	if err := r.putManifest(ctx, id, d, manifest); err != nil {
		return fmt.Errorf("push %s: %w", ref, err)
	}
	return nil
}

// Repository gives one repository's contents; it implements image.Fetcher and image.Pusher. Blobs that are missing are first
// asked for from mountFrom (repositories on the same host, as references; others are passed over).
func (c *Client) Repository(ref string, mountFrom ...string) (*Repository, error) {
	r, _, err := c.open(ref)
	if err != nil {
		return nil, err
	}
	for _, m := range mountFrom {
		name, repo, _, err := split(m)
		if err != nil {
			return nil, err
		}
		if name == r.host.name && repo != r.name && !slices.Contains(r.mountFrom, repo) {
			r.mountFrom = append(r.mountFrom, repo)
		}
	}
	return r, nil
}

func (c *Client) open(ref string) (*Repository, string, error) {
	name, repo, id, err := split(ref)
	if err != nil {
		return nil, "", err
	}
	return &Repository{host: c.host(name), name: repo, absent: map[v1.Hash]bool{}}, id, nil
}

// A Repository is one repository on one host.
type Repository struct {
	host      *host
	name      string
	mountFrom []string

	mu     sync.Mutex
	absent map[v1.Hash]bool // what Has did not find: Push need not ask again
}

// request makes a request for a path below the repository.
func (r *Repository) request(ctx context.Context, method, path string, ok ...int) (request, error) {
	base, err := r.host.base(ctx)
	if err != nil {
		return request{}, err
	}
	return request{
		method: method, url: base + "/v2/" + r.name + "/" + path, header: http.Header{},
		repo: r.name, scope: "repository:" + r.name + ":pull", ok: ok,
	}, nil
}

func (r *Repository) pushScope() string { return "repository:" + r.name + ":pull,push" }

func (r *Repository) resolve(ctx context.Context, id string) (v1.Descriptor, error) {
	req, err := r.request(ctx, http.MethodHead, "manifests/"+id, http.StatusOK)
	if err != nil {
		return v1.Descriptor{}, err
	}
	req.header.Set("Accept", accept)
	resp, err := r.host.send(ctx, req)
	var e *Error
	if errors.As(err, &e) && !retriable(e.Status) {
		return r.resolveByBody(ctx, req, id)
	}
	if err != nil {
		return v1.Descriptor{}, err
	}
	resp.Body.Close()
	if d, ok := described(resp, id); ok {
		return d, nil
	}
	return r.resolveByBody(ctx, req, id)
}

// described makes a descriptor of headers, if they are all there and of use.
func described(resp *http.Response, id string) (v1.Descriptor, bool) {
	mt, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	digest, err := v1.NewHash(resp.Header.Get("Docker-Content-Digest"))
	d := v1.Descriptor{MediaType: types.MediaType(mt), Size: resp.ContentLength, Digest: digest}
	ok := resp.StatusCode == http.StatusOK && err == nil && image.CheckDigest(digest) == nil && d.Size > 0 &&
		(d.MediaType.IsImage() || d.MediaType.IsIndex()) && (!isDigest(id) || id == digest.String())
	return d, ok
}

func isDigest(id string) bool { return strings.ContainsRune(id, ':') }

// resolveByBody serves registries with a poor HEAD, and tells errors, which HEAD has no words for.
func (r *Repository) resolveByBody(ctx context.Context, req request, id string) (v1.Descriptor, error) {
	req.method, req.ok = http.MethodGet, []int{http.StatusOK}
	resp, err := r.host.send(ctx, req)
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, image.MaxManifest+1))
	if err != nil {
		return v1.Descriptor{}, transportError(req.method, resp.Request.URL, err)
	}
	if len(raw) > image.MaxManifest {
		return v1.Descriptor{}, fmt.Errorf("manifest is larger than %d bytes", image.MaxManifest)
	}
	d := v1.Descriptor{Size: int64(len(raw)), Digest: image.Digest(raw)}
	if isDigest(id) && d.Digest.String() != id {
		return v1.Descriptor{}, fmt.Errorf("registry sent content of digest %s", d.Digest)
	}
	if d.MediaType, err = image.Kind(raw); err != nil {
		return v1.Descriptor{}, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	return d, nil
}

// place is where a descriptor's content is below the repository.
func place(d v1.Descriptor) string {
	if d.MediaType.IsImage() || d.MediaType.IsIndex() {
		return "manifests/" + d.Digest.String()
	}
	return "blobs/" + d.Digest.String()
}

// Has reports whether the repository has the content.
func (r *Repository) Has(ctx context.Context, d v1.Descriptor) (bool, error) {
	if err := image.CheckDigest(d.Digest); err != nil {
		return false, err
	}
	req, err := r.request(ctx, http.MethodHead, place(d), http.StatusOK, http.StatusNotFound)
	if err != nil {
		return false, err
	}
	req.header.Set("Accept", accept)
	req.scope = r.pushScope() // who asks this is about to push: one token less
	resp, err := r.host.send(ctx, req)
	if err != nil {
		return false, err
	}
	resp.Body.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.absent[d.Digest] = resp.StatusCode == http.StatusNotFound
	return resp.StatusCode == http.StatusOK, nil
}

// Fetch opens content. Where the connection breaks, the rest is asked for again, at most 5 times. URLs in the descriptor are ignored.
func (r *Repository) Fetch(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	if err := image.CheckDigest(d.Digest); err != nil {
		return nil, err
	}
	req, err := r.request(ctx, http.MethodGet, place(d), http.StatusOK, http.StatusPartialContent)
	if err != nil {
		return nil, err
	}
	req.header.Set("Accept", accept)
	b := &body{ctx: ctx, host: r.host, req: req, size: d.Size}
	if err := b.open(); err != nil {
		return nil, err
	}
	return b, nil
}

var errStalled = errors.New("no data for " + stall.String())

// A body is an answer that heals itself.
type body struct {
	ctx    context.Context
	host   *host
	req    request
	size   int64 // expected
	n      int64 // read
	retry  int
	cur    io.ReadCloser
	curCtx context.Context
	cancel context.CancelCauseFunc
	watch  *time.Timer
}

// open asks for what has not been read.
func (b *body) open() error {
	ctx, cancel := context.WithCancelCause(b.ctx)
	if b.n > 0 {
		b.req.header.Set("Range", fmt.Sprintf("bytes=%d-%d", b.n, b.size-1))
	}
	resp, err := b.host.send(ctx, b.req)
	if err != nil {
		cancel(nil)
		return err
	}
	b.cur, b.curCtx, b.cancel = resp.Body, ctx, cancel
	b.watch = time.AfterFunc(stall, func() { cancel(errStalled) })
	b.watch.Stop()
	skip := b.n // a registry without ranges sends all of it again
	if resp.StatusCode == http.StatusPartialContent {
		if !strings.HasPrefix(resp.Header.Get("Content-Range"), "bytes "+strconv.FormatInt(b.n, 10)+"-") {
			b.Close()
			return fmt.Errorf("registry sent range %.100q for one from %d", resp.Header.Get("Content-Range"), b.n)
		}
		skip = 0
	}
	if _, err := io.CopyN(io.Discard, watched{b}, skip); err != nil {
		b.Close()
		return fmt.Errorf("read again from the start: %w", err)
	}
	return nil
}

// watched reads the current answer. The watch runs only meanwhile: a slow consumer is no stalled registry.
type watched struct{ b *body }

func (w watched) Read(p []byte) (int, error) {
	w.b.watch.Reset(stall)
	defer w.b.watch.Stop()
	return w.b.cur.Read(p)
}

func (b *body) Read(p []byte) (int, error) {
	for {
		n, err := watched{b}.Read(p)
		b.n += int64(n)
		if n > 0 {
			return n, nil // an error comes again, or is healed, at the next call
		}
		if err == nil {
			continue
		}
		if b.n >= b.size {
			return 0, io.EOF // whatever came after the last byte
		}
		if err := b.heal(err); err != nil {
			return 0, err
		}
	}
}

func (b *body) heal(broken error) error {
	if cause := context.Cause(b.curCtx); cause != nil {
		broken = cause
	}
	b.Close()
	if err := b.ctx.Err(); err != nil {
		return context.Cause(b.ctx)
	}
	if broken == io.EOF {
		broken = io.ErrUnexpectedEOF
	}
	if b.retry++; b.retry > maxRetries {
		return fmt.Errorf("GET %s: broke off %d times, last after %d of %d bytes: %w", b.req.url, b.retry, b.n, b.size, broken)
	}
	if err := b.host.client.pause(b.ctx, b.retry-1, 0); err != nil {
		return err
	}
	return b.open()
}

func (b *body) Close() error {
	b.watch.Stop()
	b.cancel(nil)
	return b.cur.Close()
}

// Push uploads content. r is read once, or from its start for each try if it is an io.Seeker.
func (r *Repository) Push(ctx context.Context, d v1.Descriptor, content io.Reader) error {
	r.mu.Lock()
	absent := r.absent[d.Digest]
	r.mu.Unlock()
	if !absent {
		if has, err := r.Has(ctx, d); err != nil || has {
			return err
		}
	}
	if err := r.push(ctx, d, content); err != nil {
		return fmt.Errorf("push %s to %s/%s: %w", d.Digest, r.host.name, r.name, err)
	}
	return nil
}

func (r *Repository) push(ctx context.Context, d v1.Descriptor, content io.Reader) error {
	if !d.MediaType.IsImage() && !d.MediaType.IsIndex() {
		return r.pushBlob(ctx, d, content)
	}
	if d.Size > image.MaxManifest {
		return fmt.Errorf("manifest of %d bytes, limit is %d", d.Size, image.MaxManifest)
	}
	raw, err := io.ReadAll(image.Verify(content, d))
	if err != nil {
		return err
	}
	return r.putManifest(ctx, d.Digest.String(), d, raw)
}

func (r *Repository) putManifest(ctx context.Context, id string, d v1.Descriptor, raw []byte) error {
	req, err := r.request(ctx, http.MethodPut, "manifests/"+id, http.StatusCreated, http.StatusOK, http.StatusAccepted)
	if err != nil {
		return err
	}
	req.scope, req.size = r.pushScope(), d.Size
	req.header.Set("Content-Type", string(d.MediaType))
	req.body = func() (io.Reader, error) { return bytes.NewReader(raw), nil }
	resp, err := r.host.send(ctx, req)
	if err != nil {
		return err
	}
	drain(resp)
	if got := resp.Header.Get("Docker-Content-Digest"); got != "" && got != d.Digest.String() {
		return fmt.Errorf("registry kept the manifest as %.100q instead of %s", got, d.Digest)
	}
	return nil
}

func (r *Repository) pushBlob(ctx context.Context, d v1.Descriptor, content io.Reader) error {
	var to *url.URL
	for _, from := range r.mountFrom {
		query := "?mount=" + url.QueryEscape(d.Digest.String()) + "&from=" + url.QueryEscape(from)
		session, mounted, err := r.begin(ctx, query, "repository:"+from+":pull")
		if err == nil && mounted {
			return nil
		}
		var refused *Error
		if err != nil && !errors.As(err, &refused) {
			return err
		}
		to = session // a mount that is not possible has begun an upload
	}
	return r.upload(ctx, d, content, to)
}

// begin opens an upload session; mounted means that there is nothing left to upload.
func (r *Repository) begin(ctx context.Context, query, scope string) (to *url.URL, mounted bool, err error) {
	req, err := r.request(ctx, http.MethodPost, "blobs/uploads/"+query, http.StatusAccepted, http.StatusCreated)
	if err != nil {
		return nil, false, err
	}
	req.scope = strings.TrimSpace(r.pushScope() + " " + scope)
	req.body = func() (io.Reader, error) { return http.NoBody, nil }
	resp, err := r.host.send(ctx, req)
	if err != nil {
		return nil, false, err
	}
	drain(resp)
	if resp.StatusCode == http.StatusCreated {
		return nil, true, nil
	}
	to, err = r.host.locate(resp)
	return to, false, err
}

// upload sends a blob in one PUT, in a session that is open already (to) or a new one. A session that broke is not taken up
// again, since not all registries can: the next try begins anew.
func (r *Repository) upload(ctx context.Context, d v1.Descriptor, content io.Reader, to *url.URL) error {
	seeker, canRepeat := content.(io.Seeker)
	for try := 0; ; try++ {
		if to == nil {
			var err error
			if to, _, err = r.begin(ctx, "", ""); err != nil {
				return err
			}
		}
		err := r.put(ctx, d, content, to)
		if err == nil || !canRepeat || try >= maxRetries || !again(err) {
			return err
		}
		if err := r.host.client.pause(ctx, try, 0); err != nil {
			return err
		}
		if _, err := seeker.Seek(0, io.SeekStart); err != nil {
			return err
		}
		to = nil
	}
}

// again tells whether a failed upload may succeed in a new session.
func again(err error) bool {
	var e *Error
	if errors.As(err, &e) {
		return retriable(e.Status) || e.Status == http.StatusNotFound // the session was lost
	}
	return transient(err)
}

func (r *Repository) put(ctx context.Context, d v1.Descriptor, content io.Reader, to *url.URL) error {
	u := *to
	q := u.Query()
	q.Set("digest", d.Digest.String())
	u.RawQuery = q.Encode()
	source := &outgoing{r: image.Verify(content, d)}
	req := request{
		method: http.MethodPut, url: u.String(), header: http.Header{"Content-Type": {"application/octet-stream"}},
		repo: r.name, scope: r.pushScope(), size: d.Size, once: true, ok: []int{http.StatusCreated, http.StatusNoContent, http.StatusOK},
		body: func() (io.Reader, error) { return source, nil },
	}
	resp, err := r.host.send(ctx, req)
	if wrong := source.stop(); wrong != nil {
		err = permanent{wrong} // ours, whatever the registry made of it
	}
	if resp != nil {
		drain(resp)
	}
	return err
}

// outgoing is content on its way. net/http may still be reading it when the answer is there already; after stop it no longer
// does, and the content belongs to us again.
type outgoing struct {
	mu      sync.Mutex
	r       io.Reader
	stopped bool
	err     error // what went wrong on our side
}

func (o *outgoing) Read(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stopped {
		return 0, io.ErrClosedPipe
	}
	n, err := o.r.Read(p)
	if err != nil && err != io.EOF {
		o.err = err
	}
	return n, err
}

func (o *outgoing) stop() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.stopped = true
	return o.err
}
