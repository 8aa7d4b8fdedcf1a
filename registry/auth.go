package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/publicsuffix"
)

// A challenge is one element of a WWW-Authenticate header (RFC 9110, 11.6.1).
type challenge struct {
	scheme string            // lower-case
	params map[string]string // names lower-case
}

// A token is what goes into the Authorization header for one scope.
type token struct {
	header  string
	expires time.Time // zero: never
	auth    error     // why it is anonymous; see Error.Auth
}

// partners are registries with a token server of another domain.
var partners = map[string][]string{
	"registry-1.docker.io": {"auth.docker.io"},
}

// parseChallenges reads WWW-Authenticate headers; what is malformed ends the reading of that header.
func parseChallenges(headers []string) []challenge {
	var out []challenge
	for _, s := range headers {
		for {
			s = strings.TrimLeft(s, " \t,")
			word, rest := cutToken(s)
			if word == "" {
				break
			}
			c := challenge{scheme: strings.ToLower(word), params: map[string]string{}}
			s = c.parameters(rest)
			out = append(out, c)
		}
	}
	return out
}

// parameters reads name=value pairs up to the next scheme, and returns what is left.
func (c *challenge) parameters(s string) string {
	for {
		s = strings.TrimLeft(s, " \t,")
		name, rest := cutToken(s)
		value, ok := strings.CutPrefix(strings.TrimLeft(rest, " \t"), "=")
		if name == "" || !ok {
			return s
		}
		value = strings.TrimLeft(value, " \t")
		var v string
		if strings.HasPrefix(value, `"`) {
			v, s = cutQuoted(value)
		} else {
			v, s = cutToken(value)
		}
		if _, twice := c.params[strings.ToLower(name)]; !twice {
			c.params[strings.ToLower(name)] = v
		}
	}
}

// cutToken splits after the longest token (RFC 9110, 5.6.2).
func cutToken(s string) (word, rest string) {
	i := strings.IndexFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`()<>@,;:\"/[]?={}`, r)
	})
	if i < 0 {
		return s, ""
	}
	return s[:i], s[i:]
}

func cutQuoted(s string) (value, rest string) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return b.String(), s[i+1:]
		case s[i] == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String(), ""
}

// choose prefers a token to a password on every request.
func choose(cs []challenge) *challenge {
	for _, scheme := range []string{"bearer", "basic"} {
		if i := slices.IndexFunc(cs, func(c challenge) bool { return c.scheme == scheme }); i >= 0 {
			return &cs[i]
		}
	}
	return nil
}

// authorization returns the header for a scope as far as the registry has demanded one.
func (h *host) authorization(ctx context.Context, repo, scope string) (token, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.challenge == nil {
		return token{}, nil
	}
	if t, ok := h.tokens[scope]; ok && (t.expires.IsZero() || time.Now().Before(t.expires)) {
		return t, nil
	}
	t, err := h.login(ctx, repo, scope)
	if err != nil {
		return token{}, err
	}
	h.tokens[scope] = t
	return t, nil
}

// challenged takes in a 401; it reports whether trying again makes sense. What a host that we were redirected to demands is
// no business of the registry's credentials.
func (h *host) challenged(resp *http.Response, scope string, used token) bool {
	if resp.Request.URL.Host != h.addr {
		return false
	}
	c := choose(parseChallenges(resp.Header.Values("Www-Authenticate")))
	h.mu.Lock()
	defer h.mu.Unlock()
	if c == nil {
		return false
	}
	h.challenge = c
	if h.tokens[scope].header == used.header {
		delete(h.tokens, scope)
	}
	return true
}

// Login asks a registry (as references name it: "docker.io", "localhost:5000") whether it takes the credentials that the
// client's keychain has for it. A registry that demands none takes all.
func (c *Client) Login(ctx context.Context, name string) error {
	h := c.host(name)
	base, err := h.base(ctx)
	if err != nil {
		return err
	}
	resp, err := h.send(ctx, request{method: http.MethodGet, url: base + "/v2/", header: http.Header{}, ok: []int{http.StatusOK}})
	if err != nil {
		return err
	}
	drain(resp)
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tokens[""].auth // a token that was got without them proves nothing
}

// login answers the challenge. Called with h.mu held.
func (h *host) login(ctx context.Context, repo, scope string) (token, error) {
	cred, keyErr := h.client.o.Keychain.find(ctx, h.name, repo)
	if keyErr == nil && cred.isZero() {
		keyErr = errNoCredentials
	}
	switch {
	case cred.registryToken != "":
		return token{header: "Bearer " + cred.registryToken}, nil
	case h.challenge.scheme == "basic" && cred.user != "":
		return token{header: cred.basic()}, nil
	case h.challenge.scheme == "basic":
		return token{auth: keyErr}, nil
	}
	realm, err := url.Parse(h.challenge.params["realm"])
	if err != nil || realm.Host == "" || realm.Scheme != "https" && realm.Scheme != "http" {
		return token{}, fmt.Errorf("registry %s names no usable token server: realm %q", h.name, clip(h.challenge.params["realm"]))
	}
	if realm.Scheme == "http" && h.scheme == "https" {
		return token{}, fmt.Errorf("registry %s names a token server without TLS: %s", h.name, redact(realm))
	}
	realm.User = nil
	if !cred.isZero() && !h.trusts(realm) {
		keyErr = fmt.Errorf("its credentials were withheld from the token server %s, which belongs to another host; list it to allow this", realm.Host)
		cred = credential{}
	}
	t, err := h.fetchToken(ctx, realm, scope, cred)
	if err != nil && keyErr == nil {
		keyErr = errRefused
	}
	if err != nil {
		return token{}, fmt.Errorf("get a token for %s: %w", h.name, explain(err, keyErr))
	}
	t.auth = keyErr
	return t, nil
}

// explain adds to an error of a token server why there were no credentials.
func explain(err, auth error) error {
	var e *Error
	if errors.As(err, &e) && e.Auth == nil && e.Unauthorized() {
		e.Auth = auth
	}
	return err
}

// trusts reports whether a token server may see the registry's credentials.
func (h *host) trusts(realm *url.URL) bool {
	if realm.Host == h.addr && realm.Scheme == h.scheme || slices.Contains(h.client.o.Realms, realm.Host) {
		return true
	}
	if realm.Scheme != "https" {
		return false
	}
	if slices.Contains(partners[h.addr], realm.Host) {
		return true
	}
	theirs, err := publicsuffix.EffectiveTLDPlusOne(realm.Hostname())
	if err != nil || isAddress(realm.Hostname()) {
		return false
	}
	ours, err := publicsuffix.EffectiveTLDPlusOne(hostname(h.addr))
	return err == nil && ours == theirs && !isAddress(hostname(h.addr))
}

// fetchToken asks a token server: by GET, or for identity tokens by OAuth2's POST
// (distribution, docs/spec/auth/token.md and oauth.md).
func (h *host) fetchToken(ctx context.Context, realm *url.URL, scope string, cred credential) (token, error) {
	q := realm.Query()
	if s := h.challenge.params["service"]; s != "" {
		q.Set("service", s)
	}
	for s := range strings.FieldsSeq(scope) {
		q.Add("scope", s)
	}
	req, err := tokenRequest(ctx, realm, q, cred)
	if err != nil {
		return token{}, err
	}
	client := *h.http
	if cred.identityToken != "" {
		// A body with credentials is not repeated elsewhere (307, 308).
		client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	}
	asked := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		return token{}, transportError(req.Method, req.URL, err)
	}
	if resp.StatusCode != http.StatusOK {
		return token{}, h.answerError(resp)
	}
	defer resp.Body.Close()
	return readToken(resp.Body, asked)
}

func tokenRequest(ctx context.Context, realm *url.URL, q url.Values, cred credential) (*http.Request, error) {
	u := *realm
	if cred.identityToken == "" {
		u.RawQuery = q.Encode()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
		if err == nil && cred.user != "" {
			req.Header.Set("Authorization", cred.basic())
		}
		return req, err
	}
	form := url.Values{
		"grant_type": {"refresh_token"}, "refresh_token": {cred.identityToken}, "client_id": {"img"},
		"service": q["service"], "scope": {strings.Join(q["scope"], " ")},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), strings.NewReader(form.Encode()))
	if err == nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	return req, err
}

func readToken(body io.Reader, asked time.Time) (token, error) {
	raw, err := io.ReadAll(io.LimitReader(body, maxBody+1))
	if err != nil {
		return token{}, fmt.Errorf("read token: %w", err)
	}
	if len(raw) > maxBody {
		return token{}, fmt.Errorf("read token: more than %d bytes", maxBody)
	}
	var doc struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"` // seconds
	}
	if json.Unmarshal(raw, &doc) != nil {
		return token{}, errors.New("read token: not the JSON of a token server")
	}
	value := doc.Token
	if value == "" {
		value = doc.AccessToken
	}
	if value == "" || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return token{}, errors.New("read token: answer has no usable token")
	}
	// Specified: at least 60 s, also if nothing is said. A margin for the way there.
	life := time.Duration(min(max(doc.ExpiresIn, 60), 3600)) * time.Second
	return token{header: "Bearer " + value, expires: asked.Add(life - 10*time.Second)}, nil
}
