package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"img/registry/image"
)

// An Error is an answer of a registry or a token server that is no success.
type Error struct {
	// Registry that was asked, as references name it; URL may be of its token server.
	Registry string
	// Method and URL of the request, without user, password and the values of the query.
	Method, URL string
	Status      int
	// Codes are what the registry says of it (distribution-spec, "Error Codes"); untrusted text.
	Codes []Code
	// Auth says why there were no credentials, or why they did not help; nil if nothing is known.
	Auth error
}

// A Code is one reason in an error answer.
type Code struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s: %d %s", e.Method, e.URL, e.Status, http.StatusText(e.Status))
	for _, c := range e.Codes {
		fmt.Fprintf(&b, ": %s", c.Code)
		if c.Message != "" {
			fmt.Fprintf(&b, ": %s", c.Message)
		}
	}
	if e.Auth != nil {
		fmt.Fprintf(&b, " (%v)", e.Auth)
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Auth }

// Is makes a 404 an image.ErrNotFound.
func (e *Error) Is(target error) bool {
	return target == image.ErrNotFound && e.Status == http.StatusNotFound
}

// Unauthorized reports whether logging in may help. Many registries answer so for repositories that do not exist.
func (e *Error) Unauthorized() bool {
	return e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden
}

// errNoCredentials is the Auth of errors of anonymous requests.
var errNoCredentials = errors.New("no credentials are stored for it")

// errRefused is the Auth of errors of requests with credentials.
var errRefused = errors.New("the credentials for it were refused")

// answerError reads and closes an answer.
func (h *host) answerError(resp *http.Response) *Error {
	defer resp.Body.Close()
	e := &Error{Registry: h.name, Method: resp.Request.Method, URL: redact(resp.Request.URL), Status: resp.StatusCode}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return e
	}
	var doc struct {
		Errors []Code `json:"errors"`
	}
	if json.Unmarshal(raw, &doc) != nil {
		return e // a proxy's page
	}
	for _, c := range doc.Errors[:min(len(doc.Errors), 5)] {
		e.Codes = append(e.Codes, Code{clip(c.Code), clip(c.Message)})
	}
	return e
}

func clip(s string) string {
	const most = 300
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// redact writes a URL without what may be secret: user, password, fragment, and the query of signed URLs.
func redact(u *url.URL) string {
	clean := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
	return clean.String()
}

// transportError takes the URL, which may hold a signature, out of net/http's error.
func transportError(method string, u *url.URL, err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	return fmt.Errorf("%s %s: %w", method, redact(u), err)
}
