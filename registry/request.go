package registry

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// A request is one call of the protocol; send may repeat it.
type request struct {
	method string
	url    string
	header http.Header
	scope  string // of the token
	repo   string // whose credentials
	// body makes the body anew for each try; nil is none. once says that it can be made only once.
	body func() (io.Reader, error)
	once bool
	size int64
	ok   []int // statuses that are success
}

// send carries out a request with retries: of network errors, 429 and 5xx, at most maxRetries; and of one 401, with credentials.
// The answer's status is one of r.ok; the caller closes its body.
func (h *host) send(ctx context.Context, r request) (*http.Response, error) {
	challenged := false
	for try := 0; ; try++ {
		tok, err := h.authorization(ctx, r.repo, r.scope)
		if err != nil {
			return nil, err
		}
		resp, err := h.try(ctx, r, tok)
		var wait time.Duration
		switch {
		case err != nil:
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			if r.once || !transient(err) || try >= maxRetries {
				return nil, err
			}
		case slices.Contains(r.ok, resp.StatusCode):
			return resp, nil
		case resp.StatusCode == http.StatusUnauthorized && !challenged && !r.once && h.challenged(resp, r.scope, tok):
			drain(resp)
			challenged = true
			continue
		default:
			e := h.answerError(resp)
			if e.Unauthorized() {
				e.Auth = tok.auth
			}
			if e.Status == http.StatusUnauthorized && tok.header != "" && tok.auth == nil {
				e.Auth = errRefused
			}
			wait = retryAfter(resp.Header)
			if r.once || !retriable(resp.StatusCode) || try >= maxRetries || wait > maxWait {
				return nil, e
			}
		}
		if err := h.client.pause(ctx, try, wait); err != nil {
			return nil, err
		}
	}
}

func (h *host) try(ctx context.Context, r request, tok token) (*http.Response, error) {
	var body io.Reader
	if r.body != nil {
		var err error
		if body, err = r.body(); err != nil {
			return nil, err
		}
		body = struct{ io.Reader }{body} // net/http must neither close it nor guess its length
	}
	req, err := http.NewRequestWithContext(ctx, r.method, r.url, body)
	if err != nil {
		return nil, err
	}
	for name, values := range r.header {
		req.Header[name] = values
	}
	if body != nil {
		if req.ContentLength = r.size; r.size == 0 {
			req.Body = http.NoBody
		}
	}
	if tok.header != "" && req.URL.Host == h.addr {
		req.Header.Set("Authorization", tok.header)
	}
	resp, err := h.http.Do(req)
	if err != nil {
		return nil, transportError(r.method, req.URL, err)
	}
	return resp, nil
}

// drain lets the connection be used again.
func drain(resp *http.Response) {
	io.CopyN(io.Discard, resp.Body, maxBody)
	resp.Body.Close()
}

func retriable(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// A permanent error is not tried again.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// transient tells errors of the network, which may pass, from those of certificates, redirects and content.
func transient(err error) bool {
	var p permanent
	if errors.As(err, &p) {
		return false
	}
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.IsNotFound || errors.Is(err, syscall.ECONNREFUSED) {
		return false // most often a wrong name or port: say so at once
	}
	var timeout interface{ Timeout() bool }
	if errors.As(err, &timeout) && timeout.Timeout() {
		return true
	}
	var temporary interface{ Temporary() bool } // syscall.Errno, net.OpError, net.DNSError
	return errors.As(err, &temporary) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, errStalled)
}

// retryAfter reads the header: seconds or a date; 0 if it is absent or in the past.
func retryAfter(h http.Header) time.Duration {
	v := h.Get("Retry-After")
	if n, err := strconv.Atoi(v); err == nil && n > 0 {
		return time.Duration(min(n, 1<<20)) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(0, time.Until(t))
	}
	return 0
}

// pause waits before a retry: what the registry asked for, else twice as long each time, with jitter so that
// many builders do not come back together.
func (c *Client) pause(ctx context.Context, try int, asked time.Duration) error {
	d := c.backoff << try
	d += time.Duration(rand.Int64N(int64(d)/2 + 1))
	t := time.NewTimer(max(asked, d))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// locate resolves an upload's Location. On the registry's own host TLS is kept even if a proxy in front of it forgot to say so.
func (h *host) locate(resp *http.Response) (*url.URL, error) {
	u, err := resp.Location()
	if err != nil {
		return nil, errors.New("registry names no place for the upload")
	}
	if u.Host == h.addr {
		u.Scheme = h.scheme
	}
	if h.scheme == "https" && u.Scheme != "https" {
		return nil, errors.New("refused to upload without TLS to " + redact(u))
	}
	u.User = nil
	return u, nil
}
