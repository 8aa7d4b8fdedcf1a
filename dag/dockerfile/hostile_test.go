package dockerfile

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// A hostile Dockerfile costs about its size: it ends in an error, or in a plan, but never in the machine's memory.
func TestHostile(t *testing.T) {
	lines := func(n int, format string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format+"\n", i)
		}
		return b.String()
	}
	same := func(n int, line string) string { return strings.Repeat(line+"\n", n) }
	big := "ENV a=" + strings.Repeat("x", 60000) + "\nENV a=$a$a$a$a$a$a$a$a$a$a$a$a$a$a$a$a\n"
	for name, text := range map[string]string{
		"doubling":          "ENV a=aaaaaaaaaaaaaaaa\n" + same(60, "ENV a=$a$a"),
		"doubling labels":   big + same(500, "LABEL a=$a"),
		"one long word":     big + "LABEL a=" + strings.Repeat("$a", 30000),
		"a heredoc":         big + "COPY <<E /\n" + same(10000, "$a$a$a$a$a$a$a$a") + "E\n",
		"replacing":         big + "LABEL a=${a//?/" + strings.Repeat("y", 60000) + "}",
		"replacing nested":  big + "LABEL a=${a//?/${a//?/$a}}",
		"the match":         big + "LABEL a=${a//*/" + strings.Repeat("\\$0", 10000) + "}",
		"matching":          big + same(300, "LABEL a=${a#"+strings.Repeat("?*", 2000)+"}"),
		"many sources":      big + "COPY " + strings.Repeat("$a ", 20000) + "/\n",
		"many ports":        same(50000, "EXPOSE 1-65535"),
		"ports of words":    big + "EXPOSE " + strings.Repeat("$a", 20000),
		"many variables":    lines(20000, "ENV a%d=b"),
		"variables of one":  "ENV " + strings.Repeat("a=b ", 15000) + "\n" + same(10, "ENV "+strings.Repeat("a=b ", 15000)),
		"many arguments":    lines(9000, "ARG a%d=b") + same(9000, "RUN a"),
		"many unknown":      lines(2000, "ENV "+strings.Repeat("v", 200)+"%d=b") + lines(5000, "LABEL a=$"+strings.Repeat("w", 200)+"%d"),
		"many runs":         lines(5000, "ENV a%d=b") + same(30000, "RUN a"),
		"names":             big + same(500, "RUN "+strings.Repeat("$a ", 20)),
		"nested mounts":     "RUN --mount=target=" + strings.Repeat("${a:-", 9000) + strings.Repeat("}", 9000) + " a\n",
		"many mounts":       "RUN " + strings.Repeat("--mount=target=/a ", 3500) + "a\n",
		"many heredocs":     "COPY " + strings.Repeat("<<-a ", 12000) + "/\n" + strings.Repeat(strings.Repeat("\tx\n", 10)+"a\n", 12000),
		"many stages":       lines(20000, "LABEL a%d=b") + same(1900, "FROM a") + "",
		"triggers":          same(5000, "ONBUILD ENV a=b") + strings.Repeat("FROM x\n", 100),
		"stages from stage": lines(20000, "LABEL a%d=b") + lines(1900, "FROM x AS s%d") + "",
		"images by name":    lines(1900, "FROM scratch AS aaaaaaaaaaaaaaaaaaaa%d") + lines(10000, "COPY --from=aaaaaaaaaaaaaaaaaaab%d a /"),
		"instructions":      same(200_000, "RUN a"),
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			f, err := Parse("Dockerfile", []byte("FROM scratch AS x\n"+text))
			if err == nil {
				_, err = Lower(f, Options{Platform: "linux/amd64", Image: true}, bases(t, &txtar.Archive{}))
			}
			if err != nil {
				isError(t, err)
			}
			runtime.ReadMemStats(&after)
			mib := (after.TotalAlloc - before.TotalAlloc) >> 20
			t.Logf("%d MiB allocated, %.200v", mib, err)
			if mib > 4096 {
				t.Errorf("allocated %d MiB", mib)
			}
		})
	}
}
