package sshagent

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// keygen makes a key with OpenSSH's own program, and returns the public half that it wrote.
func keygen(t testing.TB, file string, args ...string) []byte {
	t.Helper()
	args = append([]string{"-q", "-N", "", "-C", "a comment", "-f", file}, args...)
	if out, err := exec.Command("ssh-keygen", args...).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	text, err := os.ReadFile(file + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	public, err := base64.StdEncoding.DecodeString(strings.Fields(string(text))[1])
	if err != nil {
		t.Fatal(err)
	}
	return public
}

// Keys of every kind and form sign what their public halves, as OpenSSH writes them, prove.
func TestKeys(t *testing.T) {
	for _, args := range []string{
		"-t ed25519", "-t rsa -b 2048", "-t rsa -b 2048 -m PEM", "-t rsa -b 2048 -m PKCS8",
		"-t ecdsa -b 256", "-t ecdsa -b 384", "-t ecdsa -b 521", "-t ecdsa -b 256 -m PEM", "-t ecdsa -b 384 -m PKCS8",
	} {
		t.Run(args, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "key")
			public := keygen(t, file, strings.Fields(args)...)
			a, err := Open(file)
			if err != nil {
				t.Fatal(err)
			}
			if got := identities(t, a); len(got) != 1 || !bytes.Equal([]byte(got[0]), public) {
				t.Fatalf("identities %q, want %q", got, public)
			}
			for _, flags := range []uint32{0, flagSHA256, flagSHA512} {
				verify(t, a.keys[0].signer.Public(), sign(t, a, public, flags), flags)
			}
		})
	}
}

// talk serves one connection and returns the client's end of it.
func talk(t *testing.T, a *Agent) net.Conn {
	t.Helper()
	client, server := net.Pipe()
	done := make(chan struct{})
	go func() { defer close(done); a.ServeConn(t.Context(), server); server.Close() }()
	t.Cleanup(func() { client.Close(); <-done })
	return client
}

func request(t *testing.T, a *Agent, m []byte) []byte {
	t.Helper()
	conn := talk(t, a)
	if err := writeMessage(conn, m); err != nil {
		t.Fatal(err)
	}
	reply, err := readMessage(conn)
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

func identities(t *testing.T, a *Agent) (out []string) {
	t.Helper()
	reply := request(t, a, []byte{requestIdentities})
	r := reader{rest: reply[1:]}
	for range r.uint32() {
		out = append(out, string(r.string()))
		r.string()
	}
	if reply[0] != identitiesAnswer || r.short || len(r.rest) > 0 {
		t.Fatalf("answer %q", reply)
	}
	return out
}

func sign(t *testing.T, a *Agent, public []byte, flags uint32) []byte {
	t.Helper()
	m := appendString(appendString([]byte{signRequest}, public), []byte("data"))
	reply := request(t, a, binary.BigEndian.AppendUint32(m, flags))
	r := reader{rest: reply[1:]}
	signature := r.string()
	if reply[0] != signResponse || r.short || len(r.rest) > 0 {
		t.Fatalf("answer %q", reply)
	}
	return signature
}

func verify(t *testing.T, public crypto.PublicKey, signature []byte, flags uint32) {
	t.Helper()
	r := reader{rest: signature}
	name, value := string(r.string()), r.string()
	hashed := func(h crypto.Hash) []byte { w := h.New(); w.Write([]byte("data")); return w.Sum(nil) }
	ok := false
	switch p := public.(type) {
	case ed25519.PublicKey:
		ok = name == typeEd25519 && ed25519.Verify(p, []byte("data"), value)
	case *rsa.PublicKey:
		want := map[uint32]string{0: "ssh-rsa", flagSHA256: "rsa-sha2-256", flagSHA512: "rsa-sha2-512"}[flags]
		h := map[uint32]crypto.Hash{0: crypto.SHA1, flagSHA256: crypto.SHA256, flagSHA512: crypto.SHA512}[flags]
		ok = name == want && rsa.VerifyPKCS1v15(p, h, hashed(h), value) == nil
	case *ecdsa.PublicKey:
		pair := reader{rest: value}
		ok = name == typeECDSA+curveName(p.Curve) && ecdsa.Verify(p, hashed(curveHash(p.Curve)), pair.number(), pair.number())
	}
	if !ok {
		t.Errorf("signature %q of type %s does not verify", value, name)
	}
}

// Nothing but lists and signatures gets through, to keys of our own and to those of another agent.
func TestRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	public := keygen(t, file, "-t", "ed25519")
	own, err := Open(file)
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan byte, 100)
	socket := otherAgent(t, func(m []byte) []byte { asked <- m[0]; return nil })
	other, err := Open(socket)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []*Agent{own, other} {
		for what := range 256 {
			if what == requestIdentities || what == signRequest {
				continue
			}
			if reply := request(t, a, append([]byte{byte(what)}, appendString(nil, public)...)); string(reply) != "\x05" {
				t.Errorf("message %d is answered with %q", what, reply)
			}
		}
		if reply := request(t, a, []byte{requestIdentities, 0}); string(reply) != "\x05" {
			t.Errorf("a list with a tail is answered with %q", reply)
		}
	}
	if len(asked) > 0 {
		t.Errorf("the other agent was asked %d", <-asked)
	}
	for _, m := range []string{"\x0d", "\x0d\x00\x00\x00\x09short", "\x0d" + string(appendString(appendString(nil, []byte("unknown")), nil)) + "\x00\x00\x00\x00"} {
		if reply := request(t, own, []byte(m)); string(reply) != "\x05" {
			t.Errorf("%q is answered with %q", m, reply)
		}
	}
}

// otherAgent is an agent behind a socket; answer gives what it says, nil closes the connection.
func otherAgent(t *testing.T, answer func([]byte) []byte) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent") // short: a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			for {
				m, err := readMessage(conn)
				if err != nil {
					break
				}
				reply := answer(m)
				if reply == nil || writeMessage(conn, reply) != nil {
					break
				}
			}
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done; os.RemoveAll(dir) })
	return path
}

// What the other agent says passes only where it answers what was asked.
func TestOtherAgent(t *testing.T) {
	for _, x := range []struct{ request, says, want string }{
		{"\x0b", "\x0c\x00\x00\x00\x00", "\x0c\x00\x00\x00\x00"},
		{"\x0b", "\x05", "\x05"},
		{"\x0b", "\x0e\x00", "\x05"},
		{"\x0dx", "\x0e\x00\x00\x00\x00", "\x0e\x00\x00\x00\x00"},
		{"\x0dx", "\x0c\x00\x00\x00\x00", "\x05"},
		{"\x0dx", "\x06", "\x05"},
	} {
		a, err := Open(otherAgent(t, func([]byte) []byte { return []byte(x.says) }))
		if err != nil {
			t.Fatal(err)
		}
		if got := request(t, a, []byte(x.request)); string(got) != x.want {
			t.Errorf("%q, to which the agent says %q: %q", x.request, x.says, got)
		}
	}
}

// A message that is too large, empty or cut ends the connection, and so does an agent that is not there.
func TestBadMessages(t *testing.T) {
	for _, m := range []string{"\xff\xff\xff\xff", "\x00\x00\x00\x00", "\x00\x04\x00\x01", "GET / HTTP/1.1\r\n\r\n"} {
		conn := talk(t, &Agent{})
		if _, err := conn.Write([]byte(m[:4])); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(conn); len(got) > 0 || err != nil {
			t.Errorf("%q is answered with %q, %v", m, got, err)
		}
	}
	if got, err := io.ReadAll(talk(t, &Agent{Socket: filepath.Join(t.TempDir(), "none")})); len(got) > 0 || err != nil {
		t.Errorf("an agent that is not there says %q, %v", got, err)
	}
}

// Raw passes on whatever it is.
func TestRaw(t *testing.T) {
	a, err := Open(otherAgent(t, func(m []byte) []byte { return append([]byte{99}, m...) }))
	if err != nil {
		t.Fatal(err)
	}
	a.Raw = true
	if got := request(t, a, []byte{17, 1}); string(got) != "\x63\x11\x01" {
		t.Errorf("the answer is %q", got)
	}
}

func TestListen(t *testing.T) {
	a := &Agent{}
	dir := t.TempDir()
	path, end, err := a.Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := writeMessage(conn, []byte{requestIdentities}); err != nil {
		t.Fatal(err)
	}
	if m, err := readMessage(conn); string(m) != "\x0c\x00\x00\x00\x00" {
		t.Errorf("%q, %v", m, err)
	}
	end()
	if m, err := readMessage(conn); err == nil {
		t.Errorf("%q after the end", m)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket: %v", err)
	}
}

// An agent ends with its context, and its connections with it.
func TestServeEnds(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); (&Agent{}).Serve(ctx, l) }()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	end()
	<-done
	if n, err := conn.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes after the end", n)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "key")
	keygen(t, file, "-t", "ed25519")
	locked := filepath.Join(dir, "locked")
	for _, form := range []string{"RFC4716", "PEM", "PKCS8"} {
		args := []string{"-q", "-t", "ecdsa", "-N", "secret", "-m", form, "-f", locked + form}
		if out, err := exec.Command("ssh-keygen", args...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if _, err := Open(locked + form); !errors.Is(err, errPassphrase) {
			t.Errorf("%s with a passphrase: %v", form, err)
		}
	}
	socket := otherAgent(t, func([]byte) []byte { return nil })
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, make([]byte, maxKeyFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, paths := range map[string][]string{
		"no such file or directory":                            {filepath.Join(dir, "none")},
		"cannot be combined with others":                       {file, socket},
		"no private key is in it":                              {file + ".pub"},
		"more than 100 KiB is no private key":                  {big},
		"is a directory":                                       {dir},
		socket + " is a socket, and cannot be combined with o": {socket, socket},
	} {
		if _, err := Open(paths...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %s", paths, err, want)
		}
	}
}

// opensshFile writes an ed25519 key as OpenSSH does, for seeds that are no real keys.
func opensshFile(kind string, fields ...[]byte) []byte {
	inside := make([]byte, 8)
	inside = appendString(inside, []byte(kind))
	for _, f := range fields {
		inside = appendString(inside, f)
	}
	inside = append(appendString(inside, []byte("comment")), 1, 2, 3)
	data := append([]byte(magic), appendString(appendString(appendString(nil, []byte("none")), []byte("none")), nil)...)
	data = binary.BigEndian.AppendUint32(data, 1)
	data = appendString(appendString(data, []byte("public")), inside)
	return pem.EncodeToMemory(&pem.Block{Type: "OPENSSH PRIVATE KEY", Bytes: data})
}

func FuzzParseKey(f *testing.F) {
	seed := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32))
	f.Add(opensshFile(typeEd25519, seed[32:], seed))
	f.Add(opensshFile(typeECDSA+"nistp256", []byte("nistp256"), nil, []byte{7}))
	f.Add(opensshFile(typeRSA, []byte{15}, []byte{3}, []byte{3}, nil, []byte{3}, []byte{5}))
	for _, kind := range []string{"RSA PRIVATE KEY", "EC PRIVATE KEY", "PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "X"} {
		f.Add(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: []byte{0x30, 1, 0}}))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > maxKeyFile {
			return
		}
		k, err := parseKey(text)
		if err != nil {
			return
		}
		if _, err := k.sign([]byte("data"), flagSHA512); err == nil && len(k.public) == 0 {
			t.Error("a key without a public half")
		}
	})
}

func FuzzServe(f *testing.F) {
	k, err := newKey(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32)), "c")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(appendString(nil, []byte{requestIdentities}))
	f.Add(appendString(nil, append(appendString(appendString([]byte{signRequest}, k.public), []byte("x")), 0, 0, 0, 0)))
	f.Fuzz(func(t *testing.T, said []byte) {
		client, server := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			(&Agent{keys: []*key{k}}).ServeConn(t.Context(), server)
			server.Close()
		}()
		go func() { client.Write(said); client.Close() }()
		io.Copy(io.Discard, client)
		<-done
	})
}

// Numbers are written with a bit for the sign.
func TestNumbers(t *testing.T) {
	for n, want := range map[int64]string{0: "", 1: "\x01", 127: "\x7f", 128: "\x00\x80", 256: "\x01\x00"} {
		got := appendNumber(nil, big.NewInt(n))
		if fmt.Sprintf("%q", got[4:]) != fmt.Sprintf("%q", want) {
			t.Errorf("%d is %q", n, got)
		}
	}
}
