package fetch

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// A site is a server that notes its requests.
type site struct {
	*httptest.Server
	mu   sync.Mutex
	seen []*http.Request
}

func serve(t *testing.T, h http.HandlerFunc) *site {
	t.Helper()
	s := &site{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.seen = append(s.seen, r)
		s.mu.Unlock()
		h(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *site) requests() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

// named is the server's address under the name localhost: another host than 127.0.0.1 to a client.
func (s *site) named() string { return strings.Replace(s.URL, "127.0.0.1", "localhost", 1) }

func secrets(m map[string]string) func(string) ([]byte, bool, error) {
	return func(id string) ([]byte, bool, error) {
		v, ok := m[id]
		return []byte(v), ok, nil
	}
}

func get(t *testing.T, c *Client, address string) string {
	t.Helper()
	f, err := c.HTTP(t.Context(), Request{URL: address})
	if err != nil {
		t.Fatal(err)
	}
	return content(t, f)
}

func content(t *testing.T, f *File) string {
	t.Helper()
	in, err := f.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	data, err := io.ReadAll(in)
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("sha256:%x", sha256.Sum256(data)); f.Digest != want || f.Size != int64(len(data)) {
		t.Errorf("the file says %s %d, it is %s %d", f.Digest, f.Size, want, len(data))
	}
	return string(data)
}

// left lists what is in the client's tmp.
func left(t *testing.T, dir string) []os.DirEntry {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "tmp"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return entries
}

func TestRevalidate(t *testing.T) {
	for name, tc := range map[string]struct {
		answer http.HandlerFunc
		again  string // what the second build asks with
		bodies int
	}{
		"tag": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"1"`)
			if r.Header.Get("If-None-Match") == `"1"` {
				w.WriteHeader(http.StatusNotModified)
				return
			}
			io.WriteString(w, "x")
		}, "If-None-Match", 1},
		"time": {func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "f", time.Unix(1e9, 0), strings.NewReader("x"))
		}, "If-Modified-Since", 1},
		"tag that is not compared": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `W/"1"`)
			io.WriteString(w, "x")
		}, "If-None-Match", 2},
		"nothing": {func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "x") }, "", 2},
	} {
		t.Run(name, func(t *testing.T) {
			s, dir := serve(t, tc.answer), t.TempDir()
			for range 2 { // two builds
				c := New(dir, Options{})
				for range 2 {
					if got := get(t, c, s.URL); got != "x" {
						t.Errorf("got %q", got)
					}
				}
			}
			seen := s.requests()
			if len(seen) != 2 {
				t.Fatalf("%d requests for two builds", len(seen))
			}
			if tc.again != "" && seen[1].Header.Get(tc.again) == "" {
				t.Errorf("the second build asks with %v", seen[1].Header)
			}
			if got := get(t, New(dir, Options{Offline: true}), s.URL); got != "x" {
				t.Errorf("offline it is %q", got)
			}
			if len(s.requests()) != 2 || len(left(t, dir)) != 0 {
				t.Errorf("%d requests, %d files left", len(s.requests()), len(left(t, dir)))
			}
		})
	}
}

func TestChangedContent(t *testing.T) {
	n := 0
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		n++
		w.Header().Set("ETag", fmt.Sprintf(`"%d"`, n))
		w.Header().Set("Last-Modified", time.Unix(int64(n), 0).UTC().Format(http.TimeFormat))
		fmt.Fprint(w, n)
	})
	dir := t.TempDir()
	for i := 1; i <= 3; i++ {
		f, err := New(dir, Options{}).HTTP(t.Context(), Request{URL: s.URL})
		if err != nil {
			t.Fatal(err)
		}
		if got := content(t, f); got != fmt.Sprint(i) || f.Modified.Unix() != int64(i) {
			t.Errorf("build %d got %q of %v", i, got, f.Modified)
		}
	}
}

func TestNoTime(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Last-Modified", "yesterday") })
	f, err := New(t.TempDir(), Options{}).HTTP(t.Context(), Request{URL: s.URL})
	if err != nil || f.Modified.UnixNano() != 0 {
		t.Errorf("%v, %v; want the beginning of 1970", f, err)
	}
}

func TestChecksum(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "x") })
	good := []string{
		fmt.Sprintf("sha256:%x", sha256.Sum256([]byte("x"))),
		fmt.Sprintf("sha384:%x", sha512.Sum384([]byte("x"))),
		fmt.Sprintf("sha512:%x", sha512.Sum512([]byte("x"))),
	}
	dir := t.TempDir()
	for _, sum := range good {
		before := len(s.requests())
		for range 2 {
			if _, err := New(dir, Options{}).HTTP(t.Context(), Request{URL: s.URL, Checksum: sum}); err != nil {
				t.Error(err)
			}
		}
		if n := len(s.requests()) - before; sum == good[0] && n != 1 || sum != good[0] && n != 0 {
			t.Errorf("%s: %d requests; what is remembered and has the checksum needs none", sum, n)
		}
	}
	for _, sum := range []string{"sha256:" + strings.Repeat("0", 64), "sha512:" + strings.Repeat("0", 128), "md5:00", "x"} {
		for _, dir := range []string{dir, t.TempDir()} {
			_, err := New(dir, Options{}).HTTP(t.Context(), Request{URL: s.URL, Checksum: sum})
			if err == nil || strings.HasPrefix(sum, "sha") != strings.Contains(err.Error(), "digest mismatch") {
				t.Errorf("%s: %v", sum, err)
			}
			if len(left(t, dir)) != 0 {
				t.Errorf("%s: something is left", sum)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "files", strings.TrimPrefix(good[0], "sha256:"))); err != nil {
		t.Errorf("what was right is gone: %v", err)
	}
}

// Where a server may send us, and what goes along.
func TestRedirect(t *testing.T) {
	var to string
	target := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/back" {
			http.Redirect(w, r, to, http.StatusFound)
			return
		}
		io.WriteString(w, "x")
	})
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/end" {
			io.WriteString(w, "end")
			return
		}
		http.Redirect(w, r, to, http.StatusFound)
	})
	o := Options{Secret: secrets(map[string]string{"HTTP_AUTH_TOKEN_127.0.0.1": "s3cret\n"})}
	for _, tc := range []struct {
		name, to string
		auth     []string // what the other host, and then this one at the end, is told
		err      string
	}{
		{"same host", s.URL + "/end", []string{"Bearer s3cret"}, ""},
		{"other port", target.URL, []string{""}, ""},
		{"other host", target.named(), []string{""}, ""},
		{"back again", target.named() + "/back", nil, "redirect"},
		{"file", "file:///etc/passwd", nil, "only http and https are followed"},
		{"ftp", "ftp://127.0.0.1/x", nil, "only http and https are followed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			to = tc.to
			before := len(target.requests())
			_, err := New(t.TempDir(), o).HTTP(t.Context(), Request{URL: s.URL + "/?token=t0ken"})
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("%v; want %q", err, tc.err)
				}
				if err != nil && strings.Contains(err.Error(), "t0ken") {
					t.Errorf("the error tells the query: %v", err)
				}
			} else if err != nil {
				t.Fatal(err)
			}
			for _, r := range target.requests()[before:] {
				if r.Header.Get("Authorization") != "" || r.Header.Get("Referer") != "" {
					t.Errorf("another host got %v", r.Header)
				}
			}
		})
	}
	if got := s.requests()[0].Header.Get("Authorization"); got != "Bearer s3cret" {
		t.Errorf("the host itself got %q", got)
	}
}

func TestRedirectFromHTTPS(t *testing.T) {
	plain := serve(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "x") })
	secure := httptest.NewTLSServer(http.RedirectHandler(plain.URL, http.StatusMovedPermanently))
	defer secure.Close()
	c := New(t.TempDir(), Options{})
	c.web = secure.Client().Transport.(*http.Transport)
	_, err := c.HTTP(t.Context(), Request{URL: secure.URL})
	if err == nil || !strings.Contains(err.Error(), "from https to http is not safe") || len(plain.requests()) != 0 {
		t.Errorf("%v, %d requests", err, len(plain.requests()))
	}
}

// A server elsewhere may not make us ask this machine.
func TestRedirectInward(t *testing.T) {
	for host, inside := range map[string]bool{
		"localhost": true, "LocalHost.": true, "a.localhost": true, "127.0.0.1": true, "127.1.2.3": true, "::1": true, "0.0.0.0": true,
		"169.254.169.254": true, "::ffff:127.0.0.1": true, "fe80::1": true,
		"example.com": false, "10.0.0.1": false, "192.168.1.1": false, "8.8.8.8": false,
	} {
		if inward(host) != inside {
			t.Errorf("inward(%q) is %v", host, !inside)
		}
	}
	for address, refused := range map[string]bool{"127.0.0.1:80": true, "[::1]:80": true, "10.0.0.1:80": false} {
		if err := refuseInward("tcp", address, nil); (err != nil) != refused {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func TestCredentials(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "x") })
	for _, tc := range []struct {
		secrets map[string]string
		address string
		want    string
	}{
		{map[string]string{"HTTP_AUTH_HEADER_127.0.0.1": "Basic abc"}, s.URL, "Basic abc"},
		{map[string]string{"HTTP_AUTH_HEADER_127.0.0.1": "Basic abc", "HTTP_AUTH_TOKEN_127.0.0.1": "t"}, s.URL, "Bearer t"},
		{map[string]string{"HTTP_AUTH_TOKEN_127.0.0.1": "t"}, s.named(), ""},
		{map[string]string{"HTTP_AUTH_TOKEN_localhost": "t"}, s.named(), "Bearer t"},
		{nil, strings.Replace(s.URL, "://", "://u:p@", 1), "Basic dTpw"},
	} {
		before := len(s.requests())
		get(t, New(t.TempDir(), Options{Secret: secrets(tc.secrets)}), tc.address)
		if got := s.requests()[before].Header.Get("Authorization"); got != tc.want {
			t.Errorf("%v %s: sent %q, want %q", tc.secrets, tc.address, got, tc.want)
		}
	}
}

// A connection that is cut goes on where it ended, if the server can; otherwise from the start.
func TestCut(t *testing.T) {
	body := strings.Repeat("0123456789", 100_000)
	for name, tc := range map[string]struct {
		tag    string
		ranges bool
		change bool
	}{
		"resumed":         {`"1"`, true, false},
		"no ranges":       {`"1"`, false, false},
		"weak tag":        {`W/"1"`, true, false},
		"changed between": {`"1"`, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			tries := 0
			s := serve(t, func(w http.ResponseWriter, r *http.Request) {
				tries++
				tag, text := tc.tag, body
				if tc.change && tries > 1 {
					tag, text = `"2"`, body+"!"
				}
				w.Header().Set("ETag", tag)
				if tries > 1 && tc.ranges {
					http.ServeContent(w, r, "f", time.Time{}, strings.NewReader(text))
					return
				}
				w.Header().Set("Content-Length", fmt.Sprint(len(text)))
				if tries == 1 {
					io.WriteString(w, text[:len(text)/2])
					w.(http.Flusher).Flush()
					panic(http.ErrAbortHandler)
				}
				io.WriteString(w, text)
			})
			dir := t.TempDir()
			got, want := get(t, New(dir, Options{}), s.URL), body
			if tc.change {
				want += "!"
			}
			if got != want || tries != 2 || len(left(t, dir)) != 0 {
				t.Errorf("%d bytes of %d in %d tries", len(got), len(want), tries)
			}
			if ranged := s.requests()[1].Header.Get("Range") != ""; ranged != strings.HasPrefix(tc.tag, `"`) {
				t.Errorf("the second request has the range %q", s.requests()[1].Header.Get("Range"))
			}
		})
	}
}

func TestStatus(t *testing.T) {
	for code, tries := range map[int]int{404: 1, 401: 1, 403: 1, 416: 1, 304: 1, 503: 2, 429: 2} {
		n := 0
		s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			if n++; n < 2 || tries == 1 {
				w.WriteHeader(code)
			}
		})
		dir := t.TempDir()
		_, err := New(dir, Options{}).HTTP(t.Context(), Request{URL: s.URL + "/f?sig=s3cret"})
		var e *Error
		switch {
		case n != tries:
			t.Errorf("%d: %d requests, want %d", code, n, tries)
		case tries == 1 && (!errors.As(err, &e) || !strings.Contains(err.Error(), fmt.Sprintf("/f?…: invalid response status %d", code))):
			t.Errorf("%d: %v", code, err)
		case code == 401 && !strings.Contains(e.Remedy, "HTTP_AUTH_TOKEN_127.0.0.1"):
			t.Errorf("%d: remedy %q", code, e.Remedy)
		case tries > 1 && err != nil:
			t.Errorf("%d: %v", code, err)
		}
	}
}

func TestRefused(t *testing.T) {
	gone := httptest.NewServer(nil)
	gone.Close()
	for _, address := range []string{
		"", "f", "ftp://h/x", "file:///etc/passwd", "http://", "http:///x", "http://u:s3cret@127.0.0.1:1/x?s3cret", gone.URL, "http://h\x00/",
	} {
		_, err := New(t.TempDir(), Options{}).HTTP(t.Context(), Request{URL: address})
		var e *Error
		if !errors.As(err, &e) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: %v", address, err)
		}
	}
	_, err := New(t.TempDir(), Options{Offline: true}).HTTP(t.Context(), Request{URL: "http://example.com/x"})
	if err == nil || !strings.Contains(err.Error(), "fetch http://example.com/x: not fetched before") {
		t.Error(err)
	}
}

func TestCancelled(t *testing.T) {
	began := make(chan struct{})
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "x")
		w.(http.Flusher).Flush()
		close(began)
		<-r.Context().Done()
	})
	dir := t.TempDir()
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	go func() { <-began; cancel(stop) }()
	if _, err := New(dir, Options{}).HTTP(ctx, Request{URL: s.URL}); !errors.Is(err, stop) {
		t.Error(err)
	}
	if len(left(t, dir)) != 0 {
		t.Error("something is left")
	}
}

// What killed processes left is deleted, what is being written is not.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	d := &download{c: New(dir, Options{})}
	if err := d.create(); err != nil {
		t.Fatal(err)
	}
	defer d.close()
	d.file.WriteString("x")
	if err := os.WriteFile(filepath.Join(dir, "tmp", "url-dead"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "x") })
	get(t, New(dir, Options{}), s.URL)
	if l := left(t, dir); len(l) != 1 || filepath.Base(d.file.Name()) != l[0].Name() {
		t.Errorf("left are %v", l)
	}
}

// A record or content that is damaged is as none.
func TestDamaged(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("ETag", `"1"`)
		io.WriteString(w, "x")
	})
	dir := t.TempDir()
	get(t, New(dir, Options{}), s.URL)
	for _, pattern := range []string{"urls/*", "files/*"} {
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(names) != 1 {
			t.Fatal(names, err)
		}
		if err := os.WriteFile(names[0], []byte("{]"), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := get(t, New(dir, Options{}), s.URL); got != "x" {
			t.Errorf("%s damaged: %q", pattern, got)
		}
	}
}
