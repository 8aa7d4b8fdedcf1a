package dockerfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"github.com/distribution/reference"

	"img/dag"
)

// A diagnosis says, for the errors of one kind, which word is guilty and what to do about it. m are the submatches of the error's text.
type diagnosis struct {
	text *regexp.Regexp
	do   func(c *complaint, m []string)
}

// diagnose applies the first diagnosis of the error. Most of these texts are those of BuildKit's packages, which give the line alone.
func (c *complaint) diagnose() {
	for _, r := range diagnoses() {
		if m := r.text.FindStringSubmatch(c.said); m != nil {
			r.do(c, m)
			return
		}
	}
}

// diagnoses is made when the first error is explained.
var diagnoses = sync.OnceValue(func() []diagnosis {
	var out []diagnosis
	for _, r := range []struct {
		text string
		do   func(c *complaint, m []string)
	}{
		{`^onbuild trigger `, (*complaint).trigger},
		{`^unknown instruction: (.*)`, (*complaint).unknownInstruction},
		{`^unknown flag: (--[^=]*)`, (*complaint).unknownFlag},
		{`^duplicate flag specified: (\S+)`, (*complaint).duplicateFlag},
		{`^missing a value on flag: (\S+)`, (*complaint).flagWithoutValue},
		{`^expecting boolean value for flag (\S+), not: `, (*complaint).flagNotBool},

		{`^unexpected key '([^']*)' for mount type '([^']*)'`, (*complaint).keyOfOtherType},
		{`^unexpected key '([^']*)' in '`, (*complaint).unknownKey},
		{`^invalid field '([^']*)' must be a key=value pair`, (*complaint).keyWithoutValue},
		{`^unsupported mount type "([^"]*)"`, func(c *complaint, m []string) {
			c.atField("type", m[1])
			c.oneOf(m[1], "bind", "cache", "secret", "ssh", "tmpfs")
		}},
		{`^unsupported sharing value "([^"]*)"`, func(c *complaint, m []string) {
			c.atField("sharing", m[1])
			c.oneOf(m[1], "shared", "private", "locked")
		}},
		{`^invalid value (\S*) for (mode|uid|gid)`, func(c *complaint, m []string) {
			c.atField(m[2], m[1])
			if m[2] == "mode" {
				c.hint("a mode is octal, as mode=0755")
			} else {
				c.hint("ids are numbers; a name is not looked up here")
			}
		}},
		{`^invalid value for (\S+): (.*)`, func(c *complaint, m []string) {
			c.atField(m[1], m[2])
			if m[1] == "size" {
				c.hint("a size is a number with a unit, as size=64m")
			} else {
				c.hint("it is true or false, or just %s", m[1])
			}
		}},
		{`^(mode|uid|gid) not allowed for "(\w+)" type mounts`, func(c *complaint, m []string) {
			c.atField(m[1], "")
			c.hint("cache, secret and ssh mounts have %s", m[1])
		}},
		{`^secret mount should not (have a|define) (from|sharing)`, func(c *complaint, m []string) {
			c.atField(m[2], "")
			c.hint("a secret is given by --secret id=ID,src=FILE, not by an image or a directory")
		}},
		{`^invalid secret mount\.`, func(c *complaint, m []string) {
			c.atField("type", "secret")
			c.hint("name it: --mount=type=secret,id=ID")
		}},
		{`^both source and id can't be set`, func(c *complaint, m []string) {
			c.atField("source", "")
			c.hint("for a secret they mean the same")
		}},
		{`^invalid cache sharing set for (\w+) mount`, func(c *complaint, m []string) {
			c.atField("sharing", "")
			c.hint("sharing is for type=cache")
		}},
		{`^'from' doesn't support variable expansion`, func(c *complaint, m []string) {
			c.atField("from", "")
			c.hint("FROM sees global ARGs: \"FROM image:$VERSION AS name\", then from=name")
		}},
		{`^variable expansion is not supported for --from`, func(c *complaint, m []string) {
			if s, ok := c.t.flag("--from"); ok {
				c.at(c.t.value(s))
			}
			c.hint("FROM sees global ARGs: \"FROM image:$VERSION AS name\", then --from=name")
		}},
		{`^failed to parse csv mounts`, func(c *complaint, m []string) { c.atFlag("--mount") }},
		{`^invalid mount target "(.*)"`, func(c *complaint, m []string) {
			if !c.atField("target", "") && !c.atField("dst", "") && !c.atField("destination", "") {
				c.atFlag("--mount")
				c.hint("say where with target=DIR")
			}
			c.hint("a mount covers a directory below /, not all files of the step")
		}},
		{`^ssh does not support source`, func(c *complaint, m []string) { c.atField("source", "") }},

		{`^invalid network mode "(.*)"`, func(c *complaint, m []string) {
			c.atFlagValue("--network")
			c.oneOf(m[1], "default", "none", "host")
		}},
		{`^security "(.*)" is not valid`, func(c *complaint, m []string) {
			c.atFlagValue("--security")
			c.oneOf(m[1], "sandbox", "insecure")
		}},
		{`^RUN --(security|device|network)\b`, func(c *complaint, m []string) { c.atFlag("--" + m[1]) }},
		{`^invalid chmod parameter: `, func(c *complaint, m []string) {
			c.atFlagValue("--chmod")
			c.hint("as --chmod=755 or --chmod=u+x,go-w")
		}},
		{`^(checksum |invalid checksum)`, func(c *complaint, m []string) { c.atFlag("--checksum") }},

		{`^(ENV|LABEL) must have two arguments`, (*complaint).nameAlone},
		{`^Syntax error - can't find = in "`, (*complaint).withoutEquals},
		{`^(\w+) names can not be blank`, (*complaint).blankName},
		{`^(\w+) requires at least one argument`, (*complaint).noArgument},
		{`^(\w+) requires exactly one argument`, (*complaint).noArgument},
		{`^(COPY|ADD) requires at least two arguments`, (*complaint).noDestination},
		{`^(COPY|ADD) cannot accept a heredoc as a destination`, func(c *complaint, m []string) {
			c.atArgument(-1)
			c.hint("the last word is where to: %s <<EOF /path", m[1])
		}},
		{`^FROM requires either one or three arguments`, (*complaint).fromArguments},
		{`^invalid name for build stage: "(.*)", `, func(c *complaint, m []string) { c.atArgument(2) }},
		{`^unterminated heredoc`, (*complaint).unterminated},
		{`^the heredoc name "(.*)" is no file name`, func(c *complaint, m []string) { c.atHeredoc(m[1]) }},
		{`^when using JSON array syntax`, (*complaint).jsonNotStrings},
		{`^SHELL requires the arguments to be in JSON form`, (*complaint).notJSON},

		{`^Unknown type "(.*)" in HEALTHCHECK`, func(c *complaint, m []string) {
			c.atArgument(0)
			if name := lookAlike(m[1]); name == "" {
				c.oneOf(m[1], "CMD", "NONE")
			}
		}},
		{`^Missing command after HEALTHCHECK CMD`, func(c *complaint, m []string) {
			c.atArgument(0)
			c.hint("as HEALTHCHECK CMD curl -f http://localhost/")
		}},
		{`^HEALTHCHECK NONE takes no arguments`, func(c *complaint, m []string) { c.atArgument(1) }},
		{`^time: .*duration "(.*)"$`, (*complaint).duration},
		{`^Interval "(\S+)" cannot be less than `, func(c *complaint, m []string) {
			c.atFlagValue("--" + m[1])
			c.say("--%s must be 0 or at least 1ms", m[1])
			c.hint("durations have a unit: 30s, 5m")
		}},
		{`^strconv\.ParseInt: parsing "(.*)": `, func(c *complaint, m []string) {
			c.atFlagValue("--retries")
			c.say("invalid value for --retries: %q is not a number", m[1])
		}},
		{`^--retries cannot be negative`, func(c *complaint, m []string) { c.atFlagValue("--retries") }},
		{`^Chaining ONBUILD|isn't allowed as an ONBUILD trigger`, func(c *complaint, m []string) {
			if w := c.t.words(); len(w) > 1 {
				c.at(w[1])
			}
		}},

		{`(?s)^failed to process arguments for platform .*: failed to process "(.*)": (.*)$`, (*complaint).expansion},
		{`(?s)^failed to process "(.*)": (.*)$`, (*complaint).expansion},
		{`^invalid (?:containerPort|hostPort|IP address|port): "?([^" ]*)`, (*complaint).port},
		{`^invalid signal: (.*)`, (*complaint).signal},
		{`^VOLUME specified can not be an empty string`, func(c *complaint, m []string) { c.atEmpty() }},
		{`^source can't be a (URL|git ref) for COPY`, (*complaint).remoteSource},

		{`^cannot copy from stage "(.*)", it needs`, func(c *complaint, m []string) {
			if !c.atFlag("--from") {
				c.trigger(m)
			}
			c.atFlagValue("--from")
		}},
		{`^cannot mount from stage "(.*)" to `, func(c *complaint, m []string) { c.atField("from", m[1]) }},
		{`^circular dependency detected on stage: (.*)`, (*complaint).circle},
		{`^invalid stage index (.*)`, (*complaint).stageIndex},
		{`^failed to parse stage name "(.*)": `, (*complaint).reference},
		{`^(base name \(.*\) should not be blank|empty platform value from expression )`, func(c *complaint, m []string) {}},
		{`^failed to parse platform (.*?): `, func(c *complaint, m []string) { c.hint("as linux/amd64 or linux/arm64/v8") }},

		{`^file with no instructions`, func(c *complaint, m []string) {
			c.e.Pos = dag.Pos{File: c.f.name}
			c.hint("a Dockerfile begins with FROM")
		}},
		{`^arguments are required`, func(c *complaint, m []string) { c.hint("as RUN make, or RUN [\"make\"]") }},
		{`^no build stage in current context`, func(c *complaint, m []string) {
			c.e.Hint = "only ARG may stand before the first FROM"
			for _, n := range c.f.nodes {
				if strings.EqualFold(n.Value, "from") {
					return
				}
			}
			c.e.Hint = "begin with FROM"
		}},
		{`^invalid escape token '(.*)'`, func(c *complaint, m []string) { c.directive(`it is escape=\ or escape=` + "`") }},
		{`^only one (\w+) parser directive can be used`, func(c *complaint, m []string) {
			c.e.Pos = c.f.place(c.t.line, 0)
			c.hint("remove one of them")
		}},
		{`^parse check options: `, func(c *complaint, m []string) { c.directive("as check=skip=RULE,RULE;error=true") }},
		{`^the front end `, func(c *complaint, m []string) { c.directive("") }},
	} {
		out = append(out, diagnosis{regexp.MustCompile(r.text), r.do})
	}
	return out
})

// atArgument places the complaint at the n-th argument that is no option; -1 is the last.
func (c *complaint) atArgument(n int) bool {
	_, args := c.t.arguments()
	if n < 0 {
		n += len(args)
	}
	if n < 0 || n >= len(args) {
		return false
	}
	c.at(args[n])
	return true
}

// trigger is an error in an ONBUILD of the base image: the guilty text is not in this file, so the base is shown.
func (c *complaint) trigger([]string) {
	if m := triggerText.FindStringSubmatch(c.said); m != nil {
		text, _ := strconv.Unquote(m[1])
		for _, n := range c.f.nodes {
			if rest, ok := strings.CutSuffix(n.Original, text); ok && strings.EqualFold(strings.TrimSpace(rest), "onbuild") {
				c.t = c.f.textAt(n.StartLine, n.EndLine)
				if w := c.t.words(); len(w) > 1 {
					c.at(w[1])
				}
				return
			}
		}
	}
	c.atArgument(0)
	c.hint("it comes from the base image, and runs in every build FROM it")
}

var triggerText = regexp.MustCompile(`(?s)^onbuild trigger ("(?:[^"\\]|\\.)*"): `)

func (c *complaint) unknownInstruction(m []string) {
	word := m[1]
	c.e.Hint = "" // BuildKit's own changes from run to run if several are as near
	if w := c.t.words(); len(w) > 0 {
		c.e.Pos, c.word = c.t.pos(w[0].from), w[0]
	}
	if hint := lookAlikeIn(c.t, c.word); hint != "" {
		c.e.Hint = hint
		return
	}
	if near := nearest(strings.ToUpper(word), keywordNames()); near != "" && utf8.RuneCountInString(word) > 2 {
		c.e.Hint = didYouMean(near)
		if c.lostContinuation(word) == "" || strings.ToUpper(word) == word {
			return
		}
	}
	if hint := conflictHint(word); hint != "" {
		c.e.Hint = hint
		return
	}
	c.e.Hint = c.lostContinuation(word)
	if word == strings.ToUpper(word) {
		c.hint("the instructions are %s", strings.Join(keywordNames(), " "))
	}
}

func conflictHint(word string) string {
	for _, mark := range []string{"<<<<<<<", "=======", ">>>>>>>", "|||||||"} {
		if strings.HasPrefix(word, mark) {
			return "a merge left its conflict in the file"
		}
	}
	return ""
}

// lostContinuation finds out whether a line was meant to continue the instruction before it.
func (c *complaint) lostContinuation(word string) string {
	before := c.before()
	if before == nil {
		return ""
	}
	line := strings.TrimRight(c.f.lines[before.end-1], " \t\r")
	escape := string(c.f.escape)
	other := map[string]string{`\`: "`", "`": `\`}[escape]
	where := fmt.Sprintf("line %d", before.end)
	switch i := strings.LastIndex(line, escape+" #"); {
	case strings.HasSuffix(line, escape+escape):
		return fmt.Sprintf("%s ends in %s, which is one escaped %s and continues nothing", where, escape+escape, escape)
	case i >= 0:
		return fmt.Sprintf("the %s of %s continues nothing, because a comment follows it", escape, where)
	case strings.HasSuffix(line, other):
		return fmt.Sprintf("%s ends in %s, but the escape character is %s (# escape=)", where, other, escape)
	case strings.HasSuffix(strings.TrimRightFunc(line, unicode.IsSpace), escape):
		return fmt.Sprintf("the %s of %s continues nothing, because a character follows it that only looks like a blank", escape, where)
	}
	if !c.shellLike(before, line, word) {
		return ""
	}
	for _, end := range []string{"&&", "||", "|", ";", ",", "[", "(", "=", "then", "do", "else"} {
		if strings.HasSuffix(line, end) {
			return fmt.Sprintf("if it continues line %d, end that line in %s", before.end, escape)
		}
	}
	if strings.HasPrefix(word, "&&") || strings.HasPrefix(word, "|") || strings.HasPrefix(word, "-") {
		return fmt.Sprintf("if it continues line %d, end that line in %s", before.end, escape)
	}
	return fmt.Sprintf("if it continues the %s of line %d, end that line in && %s", before.keyword(), before.end, escape)
}

// before is the instruction before the guilty one.
func (c *complaint) before() *text {
	var last *text
	for _, n := range c.f.nodes {
		if n.StartLine >= c.t.line {
			break
		}
		last = c.f.textAt(n.StartLine, n.EndLine)
	}
	return last
}

// shellWords are programs that a line of a RUN often begins with.
var shellWords = strings.Fields(`apk apt apt-get bash bundle cargo cat cd chmod chown cmake composer conda cp curl dnf echo exit export fi find for gem

	git go grep gunzip if install ln ls make microdnf mkdir mv npm npx pip pip3 pnpm printf python python3 rm rmdir sed set sh sleep source sudo tar test
	then touch true unzip useradd wget which while xargs yarn yum zypper`)

// shellLike reports whether a line looks like more of the instruction before it: it begins with a program after a RUN, or with what no
// instruction begins with.
func (c *complaint) shellLike(before *text, line, word string) bool {
	if r, _ := utf8.DecodeRuneInString(word); !unicode.IsLetter(r) {
		return true
	}
	if strings.ContainsAny(word, "/=$\"'.") {
		return true
	}
	run := before.keyword() == "RUN" || before.keyword() == "CMD" || before.keyword() == "ENTRYPOINT"
	return run && (slices.Contains(shellWords, word) || strings.HasSuffix(line, "&&") || strings.HasSuffix(line, ";"))
}

func (c *complaint) nameAlone(m []string) {
	if c.atArgument(0) {
		c.hint("as %s %s=VALUE", m[1], c.t.of(c.word))
	}
}

// withoutEquals is a word of ENV or LABEL without "=": mostly a value with blanks.
func (c *complaint) withoutEquals([]string) {
	_, args := c.t.arguments()
	for i, s := range args {
		if strings.Contains(c.t.of(s), "=") {
			continue
		}
		c.at(s)
		if i+1 < len(args) && c.t.of(args[i+1]) == "=" || i > 0 && strings.HasSuffix(c.t.of(args[i-1]), "=") {
			c.hint("no blanks stand around =")
			return
		}
		key, value, _ := strings.Cut(c.t.of(args[max(i-1, 0)]), "=")
		if strings.Count(value, "${") > strings.Count(value, "}") {
			c.at(args[i-1])
			c.hint("a word with blanks needs quotes, also around a ${…}")
			return
		}
		if i > 0 && strings.Trim(value, `"'`) == value {
			c.hint("a value with blanks needs quotes: %s=\"%s %s\"", key, value, c.t.of(s))
		}
		return
	}
}

func (c *complaint) blankName(m []string) {
	_, args := c.t.arguments()
	for _, s := range args {
		if strings.HasPrefix(c.t.of(s), "=") {
			c.at(s)
			c.hint("no blanks stand around =, as %s NAME=VALUE", m[1])
			return
		}
	}
}

// examples show an argument of each instruction that needs some.
var examples = map[string]string{
	"ARG": "ARG NAME=default", "ENV": "ENV NAME=value", "LABEL": "LABEL name=value", "EXPOSE": "EXPOSE 8080", "VOLUME": "VOLUME /data",
	"WORKDIR": "WORKDIR /app", "USER": "USER 1000", "STOPSIGNAL": "STOPSIGNAL SIGTERM", "HEALTHCHECK": "HEALTHCHECK CMD curl -f http://localhost/",
	"ONBUILD": "ONBUILD RUN make", "SHELL": `SHELL ["/bin/bash", "-c"]`, "MAINTAINER": "LABEL org.opencontainers.image.authors=name",
}

func (c *complaint) noArgument(m []string) {
	if example := examples[m[1]]; example != "" {
		c.hint("as %s", example)
	}
}

func (c *complaint) noDestination(m []string) {
	_, args := c.t.arguments()
	if len(args) == 0 {
		c.say("%s requires at least two arguments, a source and a destination", m[1])
		c.hint("as %s file /dir/", m[1])
		return
	}
	c.at(args[0])
	if strings.HasPrefix(c.t.of(args[0]), "<<") {
		c.hint("say where the file goes: %s %s /path", m[1], c.t.of(args[0]))
	}
	c.hint("a destination is missing: %s %s .", m[1], c.t.of(args[0]))
}

func (c *complaint) fromArguments([]string) {
	_, args := c.t.arguments()
	word := func(i int) string { return c.t.of(args[i]) }
	if hint := lookAlikeIn(c.t, span{0, len(c.t.joined)}); hint != "" {
		c.e.Hint = hint
		return
	}
	if len(args) == 0 {
		c.hint("as FROM image, or FROM image AS name")
		return
	}
	for i, s := range args {
		if t := c.t.of(s); strings.HasPrefix(t, "#") {
			c.at(s)
			c.hint("a comment has a line of its own")
			return
		} else if i > 0 && strings.HasPrefix(t, "--") {
			c.at(s)
			c.hint("options stand before the image: FROM %s %s", t, word(0))
			return
		}
	}
	if len(args) == 1 { // quotes hold it together for us, and not for FROM
		c.hint("FROM is cut at blanks, also in quotes")
		return
	}
	c.at(args[1])
	switch {
	case strings.Count(word(0), "${") > strings.Count(word(0), "}"):
		c.hint("FROM is cut at blanks, also in a ${…}")
	case strings.HasPrefix(word(1), ":") || strings.HasPrefix(word(1), "@") || strings.HasSuffix(word(0), ":"):
		c.hint("an image and its tag are one word: FROM %s%s", word(0), word(1))
	case len(args) == 2 && strings.EqualFold(word(1), "as"):
		c.hint("the stage's name is missing: FROM %s AS name", word(0))
	case len(args) == 2:
		c.hint("a stage is named by AS: FROM %s AS %s", word(0), word(1))
	case len(args) == 3:
		c.hint("did you mean \"FROM %s AS %s\"?", word(0), word(2))
	default:
		c.at(args[3])
		c.hint("the name of a stage is one word")
	}
}

// array is the part of the instruction that begins like a JSON array, an empty span if there is none.
func (t *text) array() span {
	_, args := t.arguments()
	for _, s := range args[:min(len(args), 2)] { // HEALTHCHECK CMD [
		if strings.HasPrefix(t.of(s), "[") {
			return span{s.from, len(t.joined)}
		}
	}
	return span{}
}

func (c *complaint) jsonNotStrings([]string) {
	array := c.t.array()
	var list []json.RawMessage
	if json.Unmarshal([]byte(c.t.of(array)), &list) != nil {
		return
	}
	from := array.from
	for _, item := range list {
		at := strings.Index(c.t.joined[from:], string(item))
		if at < 0 {
			return
		}
		from += at
		if item[0] != '"' {
			c.at(span{from, from + len(item)})
			c.hint("put it in double quotes: %s", strconv.Quote(string(item)))
			return
		}
		from += len(item)
	}
}

func (c *complaint) notJSON([]string) {
	array := c.t.array()
	if array == (span{}) {
		c.atArgument(0)
		c.hint("as %s", examples["SHELL"])
		return
	}
	at, hint := jsonFault(c.t.of(array))
	c.at(span{array.from + at, array.to})
	c.hint("%s", hint)
}

// jsonFault says where and why a text that begins with "[" is no JSON array.
func jsonFault(s string) (at int, hint string) {
	var list []any
	var syntax *json.SyntaxError
	err := json.Unmarshal([]byte(s), &list)
	if !errors.As(err, &syntax) {
		return 0, "the form is [\"word\", \"word\"]"
	}
	at = min(max(int(syntax.Offset)-1, 0), max(len(s)-1, 0))
	for at > 0 && !utf8.RuneStart(s[at]) {
		at--
	}
	rest := s[at:]
	before := strings.TrimRight(s[:at], " \t")
	switch {
	case strings.HasPrefix(rest, "'"):
		return at, "JSON takes double quotes: " + strings.ReplaceAll(s, "'", `"`)
	case strings.HasPrefix(rest, "\xe2\x80"):
		return at, "JSON takes plain double quotes"
	case strings.HasPrefix(rest, "]") && strings.HasSuffix(before, ","):
		return at, "JSON has no comma before the ]"
	case strings.Contains(err.Error(), "unexpected end"):
		return at, "a quote or the ] at the end is missing"
	case strings.Contains(err.Error(), "string escape"):
		return at, `in JSON a backslash is written twice: \\`
	case strings.Contains(err.Error(), "after top-level value"):
		return at, "nothing may follow the ]"
	}
	return at, "the form is [\"word\", \"word\"]"
}

// duration is a bad duration of HEALTHCHECK.
func (c *complaint) duration(m []string) {
	flags, _ := c.t.arguments()
	for _, s := range flags {
		name, value, _ := strings.Cut(c.t.of(s), "=")
		if value == m[1] {
			c.at(c.t.value(s))
			c.say("invalid value for %s: %q is no duration", name, m[1])
		}
	}
	c.hint("durations have a unit: 30s, 5m")
}

func (c *complaint) port(m []string) {
	_, args := c.t.arguments()
	for _, s := range args {
		if strings.Contains(c.t.of(s), m[1]) {
			c.at(s)
			break
		}
	}
	if c.word == (span{}) {
		for _, s := range args {
			if strings.Contains(c.t.of(s), "$") {
				c.at(s)
				break
			}
		}
	}
	if strings.HasSuffix(c.t.of(c.word), ",") {
		c.hint("ports are apart by blanks, not commas")
	}
	c.hint("a port is a number to 65535 or a range, with /tcp, /udp or /sctp if need be: 8080, 8000-8010, 53/udp")
}

func (c *complaint) signal(m []string) {
	c.atArgument(0)
	var names []string
	for _, name := range signals {
		names = append(names, "SIG"+name)
	}
	c.hint("%s", didYouMean(nearest("SIG"+strings.TrimPrefix(strings.ToUpper(m[1]), "SIG"), names)))
	c.hint("it is a name, as SIGTERM, or a number")
}

// atEmpty places the complaint at an argument that is empty, or a variable.
func (c *complaint) atEmpty() {
	_, args := c.t.arguments()
	for _, s := range args {
		if t := c.t.of(s); strings.Trim(t, `"',[]`) == "" || strings.Contains(t, "$") {
			c.at(s)
			return
		}
	}
}

func (c *complaint) remoteSource([]string) {
	_, args := c.t.arguments()
	for _, s := range args {
		if word := strings.Trim(c.t.of(s), `"',[]`); isURL(word) || isGit(word) {
			c.at(s)
			break
		}
	}
	if len(args) == 0 {
		return
	}
	c.hint("ADD fetches it: ADD %s", strings.Trim(c.t.of(c.word), `"',[]`)+" "+c.t.of(args[len(args)-1]))
}

func (c *complaint) circle(m []string) {
	if c.atFlag("--from") {
		c.atFlagValue("--from")
	} else {
		c.atField("from", m[1])
	}
	c.hint("a stage can use only what an earlier stage made, not itself")
}

func (c *complaint) stageIndex(m []string) {
	if s, ok := c.t.flag("--from"); ok {
		c.at(c.t.value(s))
	} else {
		c.atField("from", m[1])
	}
	if c.b != nil {
		if len(c.b.stages) == 1 {
			c.hint("the only stage is number 0")
		}
		c.hint("the stages are numbered from 0 to %d", len(c.b.stages)-1)
	}
}

// reference is a name that can be no image's.
func (c *complaint) reference(m []string) {
	name := m[1]
	switch {
	case strings.Contains(name, "://"):
		_, bare, _ := strings.Cut(name, "://")
		c.hint("an image's name has no %q: %s", name[:strings.Index(name, "://")+3], bare)
	case strings.HasPrefix(name, "latest:"):
		c.hint("the tag stands last: %s", strings.TrimPrefix(name, "latest:"))
	case strings.HasSuffix(name, ":"):
		if len(variables(c.t.of(c.word))) == 0 {
			c.hint("no tag follows the colon: %s:latest", strings.TrimRight(name, ":"))
		}
	case strings.Count(name[strings.LastIndexByte(name, '/')+1:], ":") > 1 && !strings.Contains(name, "@"):
		c.hint("a name has one tag: NAME:TAG")
	case strings.ToLower(name) != name && isReference(strings.ToLower(name)):
		c.hint("did you mean %q?", strings.ToLower(name))
	}
}

// directive places the complaint at the value of the directive on its line.
func (c *complaint) directive(hint string) {
	if c.t.line > 0 && c.t.line <= len(c.f.lines) {
		line := c.f.lines[c.t.line-1]
		if i := strings.IndexByte(line, '='); i >= 0 {
			i++
			i += len(line[i:]) - len(strings.TrimLeft(line[i:], " \t"))
			c.e.Pos = c.f.place(c.t.line, i)
		}
	}
	if hint != "" {
		c.hint("%s", hint)
	}
}

func article(word string) string {
	if strings.ContainsRune("aeiou", rune(word[0])) {
		return "an"
	}
	return "a"
}

func isReference(name string) bool {
	_, err := reference.ParseNormalizedNamed(name)
	return err == nil
}
