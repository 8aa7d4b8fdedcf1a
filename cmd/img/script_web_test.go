package main

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// scriptWeb serves a directory, and the git repositories in it, on loopback until the script ends. VAR becomes the server's URL. Files have an
// ETag; those whose name ends in ".plain" have neither that nor a time. What was asked for is in the file DIR.log, a line per request:
// the method, the path, the status.
func scriptWeb(ts *testscript.TestScript, neg bool, args []string) {
	dir := ts.MkAbs(args[1])
	git, err := exec.LookPath("git")
	ts.Check(err)
	log := &webLog{file: dir + ".log"}
	files := http.FileServer(http.Dir(dir))
	repositories := &cgi.Handler{Path: git, Args: []string{"-c", "safe.directory=*", "http-backend"},
		Env: []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1"}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		defer func() {
			line := r.Method + " " + r.URL.Path + " " + http.StatusText(s.status)
			if auth := r.Header.Get("Authorization"); auth != "" {
				line += " told " + auth
			}
			log.line(line)
		}()
		switch name := strings.TrimPrefix(r.URL.Path, "/"); {
		case r.URL.Query().Has("to"):
			http.Redirect(s, r, r.URL.Query().Get("to"), http.StatusFound)
		case r.URL.Query().Has("token") && r.Header.Get("Authorization") != "Bearer "+r.URL.Query().Get("token"):
			s.WriteHeader(http.StatusUnauthorized)
		case strings.Contains(name, ".git/"):
			repositories.ServeHTTP(s, r)
		case strings.HasSuffix(name, ".plain"):
			http.ServeContent(s, r, "", noTime, strings.NewReader(readOrEmpty(filepath.Join(dir, name))))
		default:
			s.Header().Set("ETag", `"`+sumOf(readOrEmpty(filepath.Join(dir, filepath.FromSlash(name))))+`"`)
			files.ServeHTTP(s, r)
		}
	}))
	ts.Defer(server.Close)
	ts.Setenv(args[0], server.URL)
}

// A webLog is the requests of a server.
type webLog struct {
	mu   sync.Mutex
	file string
}

func (l *webLog) line(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	appendLine(l.file, text)
}

// A statusWriter remembers the status of a response.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

var noTime time.Time

func readOrEmpty(file string) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	return string(data)
}

func sumOf(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text))) }

func appendLine(file, text string) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o666)
	if err == nil {
		fmt.Fprintln(f, text)
		f.Close()
	}
}
