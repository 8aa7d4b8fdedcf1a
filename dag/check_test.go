package dag

import (
	"strings"
	"testing"
)

func TestCheckDigest(t *testing.T) {
	hex := strings.Repeat("0123456789abcdef", 8)
	for _, good := range []string{"", "sha256:" + hex[:64], "sha384:" + hex[:96], "sha512:" + hex} {
		if err := CheckDigest(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"md5:", "md5:00", ":", "sha256", "sha256:", "sha256:" + hex[:63], "sha256:" + hex[:65], "sha256:" + strings.ToUpper(hex[:64]), "sha384:" + hex[:64]} {
		if err := CheckDigest(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
