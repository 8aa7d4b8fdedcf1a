// Package registrytest is a registry in the process, with faults on demand. It keeps what it was asked, so that a test can look
// for credentials that went astray.
package registrytest

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
)

// A Fault may answer a request instead of the registry; it reports whether it did. It is called for every request to the registry
// that has passed authentication.
type Fault func(w http.ResponseWriter, r *http.Request) bool

// A Registry is a running server. Set the exported fields before the first request.
type Registry struct {
	// Server answers; its Listener's address is the registry's host.
	Server *httptest.Server
	// User and Password, if not empty, are demanded: by Basic, or where Realm is set by a token.
	User, Password string
	// Realm is the URL of the token server in challenges; "self" is this server's own /token.
	Realm string

	mu      sync.Mutex
	faults  []Fault
	log     []Request
	backend http.Handler
}

// A Request as it came in.
type Request struct {
	Method, Path, Query, Host string
	Authorization, Range      string
	Body                      string // of requests to /token
}

const token = "let-me-in"

// New starts a registry on loopback, without TLS; it is stopped when the test ends.
func New(t testing.TB) *Registry { return start(t, httptest.NewServer) }

// NewTLS starts a registry with a certificate that nobody knows (Server.Certificate).
func NewTLS(t testing.TB) *Registry { return start(t, httptest.NewTLSServer) }

func start(t testing.TB, serve func(http.Handler) *httptest.Server) *Registry {
	r := &Registry{backend: ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))}
	r.Server = serve(http.HandlerFunc(r.serve))
	r.Server.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(func() {
		r.Server.CloseClientConnections() // a cut connection must not hold up the end
		r.Server.Close()
	})
	return r
}

// Host is the host:port of references.
func (r *Registry) Host() string { return r.Server.Listener.Addr().String() }

// Inject adds a fault, which lasts until it is used up.
func (r *Registry) Inject(f Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, f)
}

// Requests returns what came in so far.
func (r *Registry) Requests() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Request(nil), r.log...)
}

func (r *Registry) serve(w http.ResponseWriter, req *http.Request) {
	entry := Request{
		Method: req.Method, Path: req.URL.Path, Query: req.URL.RawQuery, Host: req.Host,
		Authorization: req.Header.Get("Authorization"), Range: req.Header.Get("Range"),
	}
	if req.URL.Path == "/token" {
		body, _ := io.ReadAll(io.LimitReader(req.Body, 1<<16))
		entry.Body = string(body)
	}
	r.mu.Lock()
	r.log = append(r.log, entry)
	faults := append([]Fault(nil), r.faults...)
	r.mu.Unlock()
	switch {
	case req.URL.Path == "/token":
		r.serveToken(w, req, entry.Body)
		return
	case !r.allowed(req):
		r.demand(w)
		return
	}
	for _, f := range faults {
		if f(w, req) {
			return
		}
	}
	r.backend.ServeHTTP(w, req)
}

func (r *Registry) basic() string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(r.User+":"+r.Password))
}

func (r *Registry) allowed(req *http.Request) bool {
	switch {
	case r.User == "" && r.Realm == "":
		return true
	case r.Realm != "":
		return req.Header.Get("Authorization") == "Bearer "+token
	}
	return req.Header.Get("Authorization") == r.basic()
}

func (r *Registry) demand(w http.ResponseWriter) {
	realm := r.Realm
	if realm == "self" {
		realm = r.Server.URL + "/token"
	}
	challenge := `Basic realm="registrytest"`
	if realm != "" {
		challenge = fmt.Sprintf(`Bearer realm=%q,service="registrytest"`, realm)
	}
	w.Header().Set("WWW-Authenticate", challenge)
	Refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
}

// serveToken answers with a good token to who knows the password, and with a useless one to others (as token servers do for
// anonymous pulls).
func (r *Registry) serveToken(w http.ResponseWriter, req *http.Request, body string) {
	value := "useless"
	if r.User == "" || req.Header.Get("Authorization") == r.basic() || strings.Contains(body, "refresh_token="+r.Password) {
		value = token
	}
	json.NewEncoder(w).Encode(map[string]any{"token": value, "expires_in": 300})
}

// Refuse writes an error answer of the protocol.
func Refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": code, "message": message}}})
}

// Times limits a fault to its first n effects.
func Times(n int, f Fault) Fault {
	var mu sync.Mutex
	return func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if n <= 0 {
			return false
		}
		n-- // before: Cut panics
		if !f(w, r) {
			n++
			return false
		}
		return true
	}
}

// On limits a fault to requests of a method whose path contains a part.
func On(method, part string, f Fault) Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		return r.Method == method && strings.Contains(r.URL.Path, part) && f(w, r)
	}
}

// Status answers with an error; header may be nil.
func Status(status int, header http.Header) Fault {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		for name, values := range header {
			w.Header()[name] = values
		}
		Refuse(w, status, "FAULT", "on demand")
		return true
	}
}

// Redirect sends the client elsewhere.
func Redirect(to string) Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, to, http.StatusTemporaryRedirect)
		return true
	}
}

// Cut lets the registry answer, but breaks the connection after n bytes of the body.
func (r *Registry) Cut(n int) Fault {
	return func(w http.ResponseWriter, req *http.Request) bool {
		rec := httptest.NewRecorder()
		r.backend.ServeHTTP(rec, req)
		if rec.Body.Len() <= n {
			return false
		}
		for name, values := range rec.Header() {
			w.Header()[name] = values
		}
		w.Header().Set("Content-Length", fmt.Sprint(rec.Body.Len()))
		w.WriteHeader(rec.Code)
		w.Write(rec.Body.Bytes()[:n])
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

// Content answers with these bytes, whatever was asked for.
func Content(data []byte) Fault {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		w.Write(data)
		return true
	}
}
