package sshagent

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha1" // for crypto.SHA1: what rsa keys sign with when no flag asks for better
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
)

// A key is a private key with its public half as ssh writes it.
type key struct {
	signer  crypto.Signer
	public  []byte
	comment string
}

// Names of key and signature types (RFC 4253, 5656, 8332, 8709).
const (
	typeRSA     = "ssh-rsa"
	typeEd25519 = "ssh-ed25519"
	typeECDSA   = "ecdsa-sha2-"
)

// Flags of a request to sign with an RSA key.
const (
	flagSHA256 = 2
	flagSHA512 = 4
)

var errPassphrase = errors.New("the key has a passphrase, which cannot be asked for here; add it to an agent with ssh-add, and give that")

// answer is the agent that has the keys itself.
func (a *Agent) answer(request []byte) ([]byte, error) {
	if request[0] == requestIdentities {
		out := binary.BigEndian.AppendUint32([]byte{identitiesAnswer}, uint32(len(a.keys)))
		for _, k := range a.keys {
			out = appendString(appendString(out, k.public), []byte(k.comment))
		}
		return out, nil
	}
	r := reader{rest: request[1:]}
	public, data, flags := r.string(), r.string(), r.uint32()
	if r.short {
		return []byte{failure}, nil
	}
	for _, k := range a.keys {
		if bytes.Equal(k.public, public) {
			signature, err := k.sign(data, flags)
			if err != nil {
				return []byte{failure}, nil
			}
			return appendString([]byte{signResponse}, signature), nil
		}
	}
	return []byte{failure}, nil
}

// sign returns a signature as ssh writes it: its type, and the bytes of that type.
func (k *key) sign(data []byte, flags uint32) ([]byte, error) {
	name, hash := "", crypto.Hash(0)
	switch p := k.signer.Public().(type) {
	case ed25519.PublicKey:
		name = typeEd25519
	case *rsa.PublicKey:
		switch {
		case flags&flagSHA512 != 0:
			name, hash = "rsa-sha2-512", crypto.SHA512
		case flags&flagSHA256 != 0:
			name, hash = "rsa-sha2-256", crypto.SHA256
		default:
			name, hash = typeRSA, crypto.SHA1
		}
	case *ecdsa.PublicKey:
		name, hash = typeECDSA+curveName(p.Curve), curveHash(p.Curve)
	}
	digest := data
	if hash != 0 {
		h := hash.New()
		h.Write(data)
		digest = h.Sum(nil)
	}
	signature, err := k.signer.Sign(rand.Reader, digest, hash)
	if err == nil && strings.HasPrefix(name, typeECDSA) {
		signature, err = pairOf(signature)
	}
	return appendString(appendString(nil, []byte(name)), signature), err
}

// pairOf writes an ECDSA signature as ssh has it, two numbers, of an ASN.1 sequence of them.
func pairOf(signature []byte) ([]byte, error) {
	var pair struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(signature, &pair); err != nil {
		return nil, err
	}
	return appendNumber(appendNumber(nil, pair.R), pair.S), nil
}

// parseKey reads a private key: OpenSSH's own form, or PEM with PKCS #1, SEC 1 or PKCS #8 in it.
func parseKey(text []byte) (*key, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("no private key is in it")
	}
	if strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED") || block.Type == "ENCRYPTED PRIVATE KEY" {
		return nil, errPassphrase
	}
	var private any
	var err error
	switch block.Type {
	case "OPENSSH PRIVATE KEY":
		return parseOpenSSH(block.Bytes)
	case "RSA PRIVATE KEY":
		private, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		private, err = x509.ParseECPrivateKey(block.Bytes)
	case "PRIVATE KEY":
		private, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("%q is no kind of private key that is read", block.Type)
	}
	if err != nil {
		return nil, err
	}
	return newKey(private, "")
}

// newKey writes the public half.
func newKey(private any, comment string) (*key, error) {
	signer, ok := private.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of type %T cannot sign", private)
	}
	k := &key{signer: signer, comment: comment}
	switch p := signer.Public().(type) {
	case ed25519.PublicKey:
		k.public = appendString(appendString(nil, []byte(typeEd25519)), p)
	case *rsa.PublicKey:
		k.public = appendNumber(appendNumber(appendString(nil, []byte(typeRSA)), big.NewInt(int64(p.E))), p.N)
	case *ecdsa.PublicKey:
		name := curveName(p.Curve)
		point, err := p.Bytes()
		if err != nil || name == "" {
			return nil, fmt.Errorf("the curve %s is not served", p.Curve.Params().Name)
		}
		k.public = appendString(appendString(appendString(nil, []byte(typeECDSA+name)), []byte(name)), point)
	default:
		return nil, fmt.Errorf("keys of type %T are not served", private)
	}
	return k, nil
}

var curves = map[string]elliptic.Curve{"nistp256": elliptic.P256(), "nistp384": elliptic.P384(), "nistp521": elliptic.P521()}

func curveName(c elliptic.Curve) string {
	for name, curve := range curves {
		if curve == c {
			return name
		}
	}
	return ""
}

func curveHash(c elliptic.Curve) crypto.Hash {
	return map[elliptic.Curve]crypto.Hash{elliptic.P256(): crypto.SHA256, elliptic.P384(): crypto.SHA384, elliptic.P521(): crypto.SHA512}[c]
}

const magic = "openssh-key-v1\x00"

// parseOpenSSH reads the first key of OpenSSH's form (PROTOCOL.key):
//
//	magic, string cipher, string kdf, string options, uint32 keys, string public,
//	string of: uint32 check, uint32 check, the key, string comment, padding
func parseOpenSSH(data []byte) (*key, error) {
	rest, ok := bytes.CutPrefix(data, []byte(magic))
	if !ok {
		return nil, errors.New("it is not of the form openssh-key-v1")
	}
	r := reader{rest: rest}
	cipher, _, _, keys, _, inside := string(r.string()), r.string(), r.string(), r.uint32(), r.string(), r.string()
	switch {
	case r.short || keys == 0:
		return nil, errCut
	case cipher != "none":
		return nil, errPassphrase
	}
	r = reader{rest: inside}
	if a, b := r.uint32(), r.uint32(); a != b {
		return nil, errors.New("its check numbers differ")
	}
	private, err := r.private(string(r.string()))
	if err != nil {
		return nil, err
	}
	comment := string(r.string())
	if r.short {
		return nil, errCut
	}
	return newKey(private, comment)
}

var errCut = errors.New("it ends too soon")

// private reads the fields of a key of a type.
func (r *reader) private(kind string) (any, error) {
	switch {
	case kind == typeEd25519:
		public, private := r.string(), r.string()
		if len(private) != ed25519.PrivateKeySize || !bytes.Equal(private[32:], public) {
			return nil, errors.New("its halves do not belong together")
		}
		return ed25519.NewKeyFromSeed(private[:32]), nil
	case kind == typeRSA:
		return r.rsa()
	case strings.HasPrefix(kind, typeECDSA):
		curve, _, number := curves[string(r.string())], r.string(), r.number()
		if curve == nil {
			return nil, fmt.Errorf("the curve of %q is not served", kind)
		}
		size := (curve.Params().BitSize + 7) / 8
		if r.short || len(number.Bytes()) > size {
			return nil, errCut
		}
		return ecdsa.ParseRawPrivateKey(curve, number.FillBytes(make([]byte, size)))
	}
	return nil, fmt.Errorf("keys of type %q are not served", kind)
}

// maxRSA bounds an RSA key in bits: checking one takes time that grows with the cube of it.
const maxRSA = 16 << 10

func (r *reader) rsa() (any, error) {
	n, e, d, _, p, q := r.number(), r.number(), r.number(), r.number(), r.number(), r.number()
	if r.short || !e.IsInt64() || e.Int64() > 1<<31-1 {
		return nil, errCut
	}
	if n.BitLen() > maxRSA {
		return nil, fmt.Errorf("an RSA key of %d bits is more than %d", n.BitLen(), maxRSA)
	}
	k := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: n, E: int(e.Int64())}, D: d, Primes: []*big.Int{p, q}}
	if err := k.Validate(); err != nil {
		return nil, err
	}
	k.Precompute()
	return k, nil
}

// A reader reads the types of RFC 4251, section 5. It gives zero values once there is too little, and says so in short.
type reader struct {
	rest  []byte
	short bool
}

func (r *reader) uint32() uint32 {
	b := r.bytes(4)
	if b == nil {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

func (r *reader) bytes(n uint32) []byte {
	if r.short || uint64(n) > uint64(len(r.rest)) {
		r.short = true
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) string() []byte { return r.bytes(r.uint32()) }

// number reads an mpint. Negative ones, which no key has, are read as what their bits are.
func (r *reader) number() *big.Int { return new(big.Int).SetBytes(r.string()) }

func appendString(to, s []byte) []byte {
	return append(binary.BigEndian.AppendUint32(to, uint32(len(s))), s...)
}

// appendNumber writes an mpint: the sign has a bit of its own.
func appendNumber(to []byte, n *big.Int) []byte {
	b := n.Bytes()
	if len(b) > 0 && b[0]&0x80 != 0 {
		b = append([]byte{0}, b...)
	}
	return appendString(to, b)
}
