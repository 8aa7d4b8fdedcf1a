package dockerfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"

	"img/dag"
	"img/registry/image"
)

// defaultPath is PATH where a base gives none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// An imageConfig is an image's configuration with the fields that BuildKit writes (image-spec, config.md, and Docker's additions), less
// rootfs and created. v1.ConfigFile reads it, but has no StartInterval of a health check, so it cannot write it.
type imageConfig struct {
	imageMeta
	Config  runConfig      `json:"config"`
	History []historyEntry `json:"history,omitempty"`
}

type imageMeta struct {
	Author       string   `json:"author,omitempty"`
	Architecture string   `json:"architecture"`
	Variant      string   `json:"variant,omitempty"`
	OS           string   `json:"os"`
	OSVersion    string   `json:"os.version,omitempty"`
	OSFeatures   []string `json:"os.features,omitempty"`
}

// A runConfig says how a container of the image starts.
type runConfig struct {
	User         string              `json:"User,omitempty"`
	ExposedPorts map[string]struct{} `json:"ExposedPorts,omitempty"`
	Env          []string            `json:"Env,omitempty"`
	Entrypoint   []string            `json:"Entrypoint,omitempty"`
	Cmd          []string            `json:"Cmd,omitempty"`
	Volumes      map[string]struct{} `json:"Volumes,omitempty"`
	WorkingDir   string              `json:"WorkingDir,omitempty"`
	Labels       map[string]string   `json:"Labels,omitempty"`
	StopSignal   string              `json:"StopSignal,omitempty"`
	ArgsEscaped  bool                `json:"ArgsEscaped,omitempty"`
	Healthcheck  *healthcheck        `json:"Healthcheck,omitempty"`
	OnBuild      []string            `json:"OnBuild,omitempty"`
	Shell        []string            `json:"Shell,omitempty"`
}

// A healthcheck is Docker's; durations are nanoseconds. Its printed form stands in the history, so the order of fields is BuildKit's.
type healthcheck struct {
	Test          []string      `json:",omitempty"`
	Interval      time.Duration `json:",omitempty"`
	Timeout       time.Duration `json:",omitempty"`
	StartPeriod   time.Duration `json:",omitempty"`
	StartInterval time.Duration `json:",omitempty"`
	Retries       int           `json:",omitempty"`
}

func (c runConfig) clone() runConfig {
	c.ExposedPorts, c.Volumes, c.Labels = maps.Clone(c.ExposedPorts), maps.Clone(c.Volumes), maps.Clone(c.Labels)
	c.Env, c.OnBuild = slices.Clone(c.Env), nil
	return c
}

// withShell is a shell form's argument vector.
func (c runConfig) withShell(os string, args []string) []string {
	shell := c.Shell
	switch {
	case len(shell) > 0:
	case os == windows:
		shell = []string{"cmd", "/S", "/C"}
	default:
		shell = []string{"/bin/sh", "-c"}
	}
	return append(slices.Clone(shell), strings.Join(args, " "))
}

// readConfig reads a base image's configuration, from the raw bytes if there are any, because they say more.
func readConfig(img *image.Image) (*imageConfig, error) {
	raw := img.RawConfig
	if len(raw) == 0 && img.Config != nil {
		var err error
		if raw, err = json.Marshal(img.Config); err != nil {
			return nil, err
		}
	}
	var c imageConfig
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, err
	}
	for i, h := range c.History {
		if h.Created != nil && h.Created.IsZero() {
			c.History[i].Created = nil
		}
	}
	return &c, nil
}

func emptyMeta(p platforms.Platform) imageMeta {
	return imageMeta{Architecture: p.Architecture, Variant: p.Variant, OS: p.OS, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures}
}

// setPlatform makes an image one of the platform that was asked for, whatever its base is.
func (m *imageMeta) setPlatform(p platforms.Platform) {
	same := m.OS == p.OS && m.Architecture == p.Architecture
	m.OS, m.Architecture = p.OS, p.Architecture
	if p.Variant != "" || !same {
		m.Variant = p.Variant
	}
	if p.OSVersion != "" || !same {
		m.OSVersion = p.OSVersion
	}
	if p.OSFeatures != nil {
		m.OSFeatures = p.OSFeatures
	}
}

// finish returns the target's configuration: the labels and the platform of the build, and the history.
func (l *lowering) finish(t *stage) ([]byte, error) {
	c := imageConfig{imageMeta: t.meta, Config: t.config.clone(), History: t.past.entries()}
	c.Config.OnBuild = t.config.OnBuild
	l.settle(&c, t)
	if len(l.o.Labels) > 0 && c.Config.Labels == nil {
		c.Config.Labels = map[string]string{}
	}
	maps.Copy(c.Config.Labels, l.o.Labels)
	if !l.o.PlatformImplied {
		c.imageMeta.setPlatform(l.platform)
	}
	p := platforms.Normalize(platforms.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant})
	c.OS, c.Architecture, c.Variant = p.OS, p.Architecture, p.Variant
	out, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("write the image configuration: %w", err)
	}
	return out, nil
}

// configure carries out the instructions that only change the configuration.
func (l *lowering) configure(s *stage, c instructions.Command) error {
	switch i := c.(type) {
	case *instructions.EnvCommand:
		l.env(s, i)
	case *instructions.LabelCommand:
		l.label(s, i)
	case *instructions.CmdCommand:
		s.once(&s.cmd, i)
		s.config.Cmd = l.commandLine(s, i, i.ShellDependantCmdLine)
		s.config.ArgsEscaped = true
		s.remember(fmt.Sprintf("CMD %q", s.config.Cmd), false)
	case *instructions.EntrypointCommand:
		s.once(&s.entry, i)
		s.config.Entrypoint = l.commandLine(s, i, i.ShellDependantCmdLine)
		if s.cmd == nil {
			s.config.Cmd = nil
		}
		s.remember(fmt.Sprintf("ENTRYPOINT %q", s.config.Entrypoint), false)
	case *instructions.HealthCheckCommand:
		s.once(&s.hc, i)
		h := healthcheck(*i.Health)
		s.config.Healthcheck = &h
		s.remember(fmt.Sprintf("HEALTHCHECK %+v", h), false)
	case *instructions.UserCommand:
		s.config.User = i.User
		s.remember("USER "+i.User, false)
	case *instructions.VolumeCommand:
		return s.volume(i)
	case *instructions.StopSignalCommand:
		if !isSignal(i.Signal) {
			return fmt.Errorf("invalid signal: %s", i.Signal)
		}
		s.config.StopSignal = i.Signal
		s.remember("STOPSIGNAL "+i.Signal, false)
	case *instructions.ShellCommand:
		s.config.Shell = i.Shell
		s.remember(fmt.Sprintf("SHELL %v", i.Shell), false)
	case *instructions.MaintainerCommand:
		s.meta.Author = i.Maintainer
		s.remember("MAINTAINER "+i.Maintainer, false)
	case *instructions.OnbuildCommand:
		s.config.OnBuild = append(s.config.OnBuild, i.Expression)
	}
	return nil
}

func (l *lowering) env(s *stage, c *instructions.EnvCommand) {
	text := strings.Builder{}
	text.WriteString("ENV")
	for _, e := range c.Env {
		s.legacyForm(c, e)
		l.noSecret(s, "ENV", e.Key, c)
		text.WriteString(" " + e.String())
		s.env.set(e.Key, e.Value)
		if at, ok := s.envAt[e.Key]; ok {
			s.config.Env[at] = e.String()
			continue
		}
		s.envAt[e.Key] = len(s.config.Env)
		s.config.Env = append(s.config.Env, e.String())
	}
	s.remember(text.String(), false)
}

func (l *lowering) label(s *stage, c *instructions.LabelCommand) {
	if s.config.Labels == nil {
		s.config.Labels = map[string]string{}
	}
	text := strings.Builder{}
	text.WriteString("LABEL")
	for _, e := range c.Labels {
		s.legacyForm(c, e)
		s.config.Labels[e.Key] = e.Value
		text.WriteString(" " + e.String())
	}
	s.remember(text.String(), false)
}

func (s *stage) legacyForm(c instructions.Command, e instructions.KeyValuePair) {
	if e.NoDelim {
		s.lint.Run(&linter.RuleLegacyKeyValueFormat, c.Location(), linter.RuleLegacyKeyValueFormat.Format(c.Name()))
	}
}

// commandLine is a CMD's or ENTRYPOINT's argument vector.
func (l *lowering) commandLine(s *stage, c instructions.Command, line instructions.ShellDependantCmdLine) []string {
	if !line.PrependShell {
		return line.CmdLine
	}
	if len(s.config.Shell) == 0 {
		s.lint.Run(&linter.RuleJSONArgsRecommended, c.Location(), linter.RuleJSONArgsRecommended.Format(c.Name()))
	}
	return s.config.withShell(s.meta.OS, line.CmdLine)
}

func (s *stage) volume(c *instructions.VolumeCommand) error {
	if s.config.Volumes == nil {
		s.config.Volumes = map[string]struct{}{}
	}
	for _, v := range c.Volumes {
		if v == "" {
			return errors.New("VOLUME specified can not be an empty string")
		}
		s.config.Volumes[v] = struct{}{}
	}
	s.remember(fmt.Sprintf("VOLUME %v", c.Volumes), false)
	return nil
}

// workdir makes the directory, as the current USER. A layer is recorded even if it is there already, but not for "/".
func (l *lowering) workdir(s *stage, c command, i *instructions.WorkdirCommand) error {
	if !s.workdirSet && !path.IsAbs(i.Path) {
		s.lint.Run(&linter.RuleWorkdirRelativePath, i.Location(), linter.RuleWorkdirRelativePath.Format(i.Path))
	}
	s.workdirSet = true
	dir := joinDir(s.config.WorkingDir, i.Path)
	if !path.IsAbs(i.Path) && !s.unknown {
		l.absolute[l.f.at(c.Location()).Line] = dir
	}
	s.config.WorkingDir = dir
	if dir == "/" {
		s.remember("WORKDIR /", false)
		return nil
	}
	v := &dag.Vertex{}
	v.Op = &dag.Mkdir{Base: inputs{v}.ref(s.files), Path: path.Clean(dir), User: s.config.User}
	l.step(s, c, v, l.expandName(l.lex, i.String(), s.env))
	s.remember("WORKDIR "+dir, true)
	return nil
}

// joinDir is a new working directory. An absolute one stays as written, trailing slash included.
func joinDir(old, dir string) string {
	switch {
	case path.IsAbs(dir):
		return dir
	case dir == "" && path.IsAbs(old):
		return old
	}
	return path.Join("/", old, dir)
}

// maxPorts is how many ports one EXPOSE may name: every port of every protocol.
const maxPorts = 3 * 65536

func (l *lowering) expose(s *stage, c *instructions.ExposeCommand) error {
	var ports []string
	for _, word := range c.Ports {
		words, err := l.plainWords(word, s.env)
		if err != nil {
			return err
		}
		for _, w := range words {
			p, err := s.ports(c, w)
			if err != nil {
				return err
			}
			if ports = append(ports, p...); len(ports) > maxPorts {
				return fmt.Errorf("EXPOSE names more than %d ports", maxPorts)
			}
		}
	}
	if err := l.spend(64 * len(ports)); err != nil {
		return err
	}
	if s.config.ExposedPorts == nil {
		s.config.ExposedPorts = map[string]struct{}{}
	}
	for _, p := range ports {
		s.config.ExposedPorts[p] = struct{}{}
	}
	s.remember(fmt.Sprintf("EXPOSE %v", ports), false)
	return nil
}

// ports reads "[ip:][host:]port[-port][/proto]"; only the container's part counts.
func (s *stage) ports(c instructions.Command, word string) ([]string, error) {
	rest, port := "", word
	if i := strings.LastIndexByte(word, ':'); i >= 0 {
		rest, port = word[:i], word[i+1:]
	}
	port, proto, _ := strings.Cut(port, "/")
	if port == "" {
		return nil, fmt.Errorf("invalid port: %q: no port specified", word)
	}
	written := proto
	if proto = strings.ToLower(proto); proto == "" {
		proto = "tcp"
	}
	if proto != "tcp" && proto != "udp" && proto != "sctp" {
		return nil, fmt.Errorf("invalid port: %q: invalid proto: %s", word, written)
	}
	if written != strings.ToLower(written) {
		s.lint.Run(&linter.RuleExposeProtoCasing, c.Location(), linter.RuleExposeProtoCasing.Format(word))
	}
	first, last, err := portRange(port)
	if err != nil {
		return nil, errors.New("invalid containerPort: " + port)
	}
	if strings.Trim(rest, ":") != "" {
		s.lint.Run(&linter.RuleExposeInvalidFormat, c.Location(), linter.RuleExposeInvalidFormat.Format(word))
		if err := checkHostPort(rest, first, last); err != nil {
			return nil, err
		}
	}
	out := make([]string, 0, last-first+1)
	for p := first; p <= last; p++ {
		out = append(out, strconv.Itoa(p)+"/"+proto)
	}
	return out, nil
}

func portRange(text string) (first, last int, err error) {
	from, to, isRange := strings.Cut(text, "-")
	if !isRange {
		to = from
	}
	a, errA := strconv.Atoi(from) // which takes a sign, as BuildKit does
	z, errZ := strconv.Atoi(to)
	if err := errors.Join(errA, errZ); err != nil {
		return 0, 0, err
	}
	if a < 0 || a > 65535 || z < a || z > 65535 {
		return 0, 0, fmt.Errorf("invalid port range: %s", text)
	}
	return a, z, nil
}

// signals are the names that moby/sys/signal knows for Linux, without SIG.
var signals = strings.Fields(`ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT IO IOT KILL PIPE POLL PROF PWR QUIT SEGV STKFLT STOP SYS
	TERM TRAP TSTP TTIN TTOU URG USR1 USR2 VTALRM WINCH XCPU XFSZ RTMIN RTMAX`)

// isSignal reports whether STOPSIGNAL may be set to a text: a number but 0, or a name, with or without SIG.
func isSignal(text string) bool {
	if n, err := strconv.Atoi(text); err == nil {
		return n != 0
	}
	name := strings.TrimPrefix(strings.ToUpper(text), "SIG")
	if plus, ok := strings.CutPrefix(name, "RTMIN+"); ok {
		return inRange(plus, 1, 15)
	}
	if minus, ok := strings.CutPrefix(name, "RTMAX-"); ok {
		return inRange(minus, 1, 14)
	}
	return slices.Contains(signals, name)
}

func inRange(text string, low, high int) bool {
	n, err := strconv.Atoi(text)
	return err == nil && strconv.Itoa(n) == text && low <= n && n <= high
}

// checkHostPort checks the part of a port that has no effect: "[ip:][host]".
func checkHostPort(text string, first, last int) error {
	ip, host := "", text
	if i := strings.LastIndexByte(text, ':'); i >= 0 {
		ip, host = text[:i], text[i+1:]
	}
	if ip != "" {
		bare := strings.TrimSuffix(strings.TrimPrefix(ip, "["), "]")
		if _, err := netip.ParseAddr(bare); err != nil {
			return errors.New("invalid IP address: " + ip)
		}
	}
	if host == "" {
		return nil
	}
	a, z, err := portRange(host)
	if err != nil {
		return errors.New("invalid hostPort: " + host)
	}
	if z-a != last-first && first != last {
		return fmt.Errorf("invalid ranges specified for container and host Ports: %d-%d and %s", first, last, host)
	}
	return nil
}
