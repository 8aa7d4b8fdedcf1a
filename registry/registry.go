// Package registry is the OCI distribution protocol: a client with its own rules for credentials and plain HTTP.
//
// Credentials go only to the host they are stored for, and to a token server (realm) that is the same host, shares its
// registrable domain over TLS, is a well-known partner, or was listed by the user. Redirects to other hosts never carry
// them. It knows nothing about the local store. Protocol: OCI distribution-spec v1.1 and Docker's token authentication.
package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/distribution/reference"

	"img/registry/image"
)

const (
	maxBody      = 64 << 10 // bytes of an error or a token
	maxRetries   = 5        // of one operation, beside the first try
	maxRedirects = 10
	maxWait      = time.Minute // that a Retry-After may ask for
	stall        = time.Minute // without a byte ends a try
)

// Options of New.
type Options struct {
	// Keychain finds credentials; nil is anonymous.
	Keychain *Keychain
	// Insecure lists hosts to be spoken to without TLS or without checking certificates. Loopback hosts may use plain HTTP without it.
	Insecure []string
	// Realms lists token servers (host or host:port) that may get credentials although they belong to another domain than the registry.
	Realms []string
	// CAFile adds certificate authorities, PEM. SSL_CERT_FILE and the system's are honoured anyway.
	CAFile    string
	UserAgent string
}

// A Client speaks to registries. Safe for concurrent use.
type Client struct {
	o        Options
	checked  *http.Transport // verifies certificates
	insecure *http.Transport // does not
	guarded  *http.Transport // refuses private addresses: for where a public registry sends us
	err      error           // of New, told at first use
	backoff  time.Duration   // before the first retry; doubles

	mu    sync.Mutex
	hosts map[string]*host
}

// New makes a client. Options that cannot be used (CAFile) are an error of the first call.
func New(o Options) *Client {
	if o.UserAgent == "" {
		o.UserAgent = "img"
	}
	if o.Keychain == nil {
		o.Keychain = &Keychain{}
	}
	c := &Client{o: o, hosts: map[string]*host{}, backoff: 200 * time.Millisecond}
	roots, err := certificates(o.CAFile)
	if err != nil {
		c.err = fmt.Errorf("registry client: %w", err)
	}
	c.checked = transport(&tls.Config{RootCAs: roots}, nil)
	c.insecure = transport(&tls.Config{InsecureSkipVerify: true}, nil) // only for hosts in Options.Insecure
	c.guarded = transport(&tls.Config{RootCAs: roots}, refusePrivate)
	return c
}

func certificates(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil // the system's
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: no certificate in it", file)
	}
	return pool, nil
}

func transport(t *tls.Config, control func(network, address string, c syscall.RawConn) error) *http.Transport {
	t.MinVersion = tls.VersionTLS12
	d := &net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second, Control: control}
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            d.DialContext,
		TLSClientConfig:        t,
		TLSHandshakeTimeout:    30 * time.Second,
		ResponseHeaderTimeout:  5 * time.Minute, // registries verify and copy a large blob before they answer
		MaxResponseHeaderBytes: maxBody,
		MaxIdleConnsPerHost:    8,
		IdleConnTimeout:        90 * time.Second,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true, // digests are of the bytes as they are
	}
}

// refusePrivate looks at addresses after the name was resolved: a public registry has no business to send us to the
// machine's own services or to a cloud's metadata server.
func refusePrivate(_, address string, _ syscall.RawConn) error {
	name, _, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(name); ip == nil || isPrivate(ip) {
		return permanent{fmt.Errorf("refused: a public registry led to the private address %s", name)}
	}
	return nil
}

func isPrivate(ip net.IP) bool {
	return ip.IsLoopback() || ip.IsPrivate() || ip.IsLinkLocalUnicast() || ip.IsUnspecified() || ip.IsMulticast()
}

// CloseIdle drops connections that wait to be used again.
func (c *Client) CloseIdle() {
	for _, t := range []*http.Transport{c.checked, c.insecure, c.guarded} {
		t.CloseIdleConnections()
	}
}

// host returns the one host value for a registry's name.
func (c *Client) host(name string) *host {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := c.hosts[name]; h != nil {
		return h
	}
	h := &host{client: c, name: name, addr: name, tokens: map[string]token{}}
	if name == "docker.io" {
		h.addr = "registry-1.docker.io"
	}
	h.insecure = slices.Contains(c.o.Insecure, name)
	h.http = &http.Client{Transport: h, CheckRedirect: checkRedirect}
	c.hosts[name] = h
	return h
}

// A host is one registry: how to reach it, and what it demands.
type host struct {
	client   *Client
	name     string // as in references
	addr     string // host[:port] of requests
	insecure bool
	http     *http.Client

	reach  sync.Mutex // guards scheme and near while they are found out
	scheme string
	near   *bool

	mu        sync.Mutex // guards what follows; held while a token is fetched
	challenge *challenge
	tokens    map[string]token // by scope
}

// RoundTrip chooses the transport by where the request goes; it is called for redirects too.
func (h *host) RoundTrip(req *http.Request) (*http.Response, error) {
	c := h.client
	req.Header.Set("User-Agent", c.o.UserAgent)
	switch {
	case req.URL.Host == h.addr && h.insecure:
		return c.insecure.RoundTrip(req)
	case req.URL.Host == h.addr || proxied(req) || h.isNear(req.Context()):
		return c.checked.RoundTrip(req)
	}
	return c.guarded.RoundTrip(req)
}

// proxied requests reach only what the proxy lets them.
func proxied(req *http.Request) bool {
	proxy, err := http.ProxyFromEnvironment(req)
	return err == nil && proxy != nil
}

// isNear reports whether the registry itself is on a private network; then it may refer to others there.
func (h *host) isNear(ctx context.Context) bool {
	h.reach.Lock()
	defer h.reach.Unlock()
	if h.near == nil {
		near := h.insecure
		ips, err := net.DefaultResolver.LookupIPAddr(ctx, hostname(h.addr))
		for _, ip := range ips {
			near = near || isPrivate(ip.IP)
		}
		if err != nil {
			return near
		}
		h.near = &near
	}
	return *h.near
}

// base returns the URL prefix. Hosts that may speak plain HTTP are asked by TLS first.
func (h *host) base(ctx context.Context) (string, error) {
	if h.client.err != nil {
		return "", h.client.err
	}
	h.reach.Lock()
	defer h.reach.Unlock()
	if h.scheme == "" {
		scheme, err := h.findScheme(ctx)
		if err != nil {
			return "", err
		}
		h.scheme = scheme
	}
	return h.scheme + "://" + h.addr, nil
}

func (h *host) findScheme(ctx context.Context) (string, error) {
	if !h.insecure && !isLoopback(hostname(h.addr)) {
		return "https", nil
	}
	t := h.client.checked
	if h.insecure {
		t = h.client.insecure
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+h.addr+"/v2/", nil)
	if err != nil {
		return "", err
	}
	resp, err := t.RoundTrip(req)
	if err == nil {
		resp.Body.Close()
		return "https", nil
	}
	// A certificate that does not verify is no reason to give up TLS altogether.
	var cert *tls.CertificateVerificationError
	if ctx.Err() != nil || errors.As(err, &cert) {
		return "", fmt.Errorf("GET https://%s/v2/: %w", h.addr, err)
	}
	return "http", nil
}

func hostname(addr string) string {
	if name, _, err := net.SplitHostPort(addr); err == nil {
		return name
	}
	return strings.Trim(addr, "[]")
}

func isLoopback(name string) bool {
	ip := net.ParseIP(name)
	return name == "localhost" || ip != nil && ip.IsLoopback()
}

// checkRedirect follows like a careful browser: no way from TLS to plain HTTP, no credentials to another host.
func checkRedirect(req *http.Request, via []*http.Request) error {
	first, last := via[0], via[len(via)-1]
	if len(via) > maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	if req.URL.Scheme != "https" && last.URL.Scheme == "https" {
		return fmt.Errorf("refused to follow a redirect from https to %s", redact(req.URL))
	}
	req.Header.Del("Referer")
	if req.URL.Host != first.URL.Host || req.URL.Scheme != first.URL.Scheme {
		req.Header.Del("Authorization")
		req.URL.User = nil
	}
	return nil
}

// split parses a full or short reference into host, repository path and tag or digest.
func split(ref string) (hostName, repo, id string, err error) {
	full, err := image.NormalizeRef(ref)
	if err != nil {
		return "", "", "", err
	}
	named, err := reference.ParseNamed(full)
	if err != nil {
		return "", "", "", fmt.Errorf("image name %q: %w", ref, err)
	}
	hostName, repo = reference.Domain(named), reference.Path(named)
	if d, ok := named.(reference.Digested); ok {
		return hostName, repo, d.Digest().String(), nil
	}
	return hostName, repo, named.(reference.Tagged).Tag(), nil
}
