// Command img builds container images from Dockerfiles: no daemon, no root, its own engine.
//
// This package is the command line: flags, the order of things, and the voice. What it says and how it exits is in
// errors.go, and nowhere else.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"

	"github.com/alecthomas/kong"

	"img/exec"
	"img/exec/sandbox"
	"img/userns"
)

// Set by the linker: -X main.version=... -X main.commit=...
var (
	version = "dev"
	commit  = ""
)

// Globals are the options of every command, and the world that commands see.
type Globals struct {
	State   string   `short:"s" placeholder:"DIR" help:"State directory (default: $$XDG_DATA_HOME/img, $$HOME/.local/share/img, /tmp/img)."`
	Backend string   `short:"b" default:"auto" enum:"auto,overlayfs,fuse-overlayfs,native" help:"How file systems are kept: auto, overlayfs, native (copies)."`
	Debug   bool     `short:"d" help:"Say more on standard error."`
	Config  string   `placeholder:"FILE" help:"Configuration file (default: $$XDG_CONFIG_HOME/img/config.toml)."`
	Help    helpFlag `short:"h" help:"Show help."`

	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	// state is the state directory, once it was needed.
	state *guarded
	// settings is where values that no flag gave come from.
	settings *settings
	// model is the grammar, for `img config`, `img help`.
	model *kong.Kong
	// sources are the texts of Dockerfiles by the file name in their positions, for excerpts in errors.
	sources map[string][]byte
}

// addSource keeps a Dockerfile's text, so that errors can show its lines.
func (g *Globals) addSource(name string, text []byte) {
	if g.sources == nil {
		g.sources = map[string][]byte{}
	}
	g.sources[name] = text
}

// stateDir is where the files of the state directory in force are reached. It is made, checked and guarded once.
func (g *Globals) stateDir() (string, error) {
	if g.state == nil {
		dir, err := stateDir(g.State, g.getenv)
		if err != nil {
			return "", err
		}
		if g.state, err = guard(dir); err != nil {
			return "", err
		}
	}
	return g.state.path, nil
}

// debugf says something that is only wanted with -d.
func (g *Globals) debugf(format string, args ...any) {
	if g.Debug {
		notef(g.stderr, format, args...)
	}
}

// The commands stand before the globals: kong then lets a command give a short flag a meaning of its own.
type grammar struct {
	Build   BuildCmd   `cmd:"" aliases:"bud" help:"Build an image from a Dockerfile."`
	Lint    LintCmd    `cmd:"" help:"Check Dockerfiles, and repair them."`
	Ls      LsCmd      `cmd:"" aliases:"images" help:"List images."`
	Pull    PullCmd    `cmd:"" help:"Pull images from a registry."`
	Push    PushCmd    `cmd:"" help:"Push images to a registry."`
	Tag     TagCmd     `cmd:"" help:"Give an image another name."`
	Rm      RmCmd      `cmd:"" aliases:"rmi" help:"Remove images."`
	Inspect InspectCmd `cmd:"" help:"Print an image's configuration as JSON."`
	History HistoryCmd `cmd:"" help:"Show the steps an image was made by."`
	Save    SaveCmd    `cmd:"" help:"Write images to a tar archive."`
	Load    LoadCmd    `cmd:"" help:"Read images from a tar archive."`
	Import  ImportCmd  `cmd:"" help:"Make an image of a root file system's tar."`
	Unpack  UnpackCmd  `cmd:"" help:"Unpack an image's files into a directory."`
	Login   LoginCmd   `cmd:"" help:"Log in to a registry."`
	Logout  LogoutCmd  `cmd:"" help:"Log out from a registry."`
	Du      DuCmd      `cmd:"" help:"Show what the state directory holds."`
	Prune   PruneCmd   `cmd:"" help:"Remove what no image needs."`
	Doctor  DoctorCmd  `cmd:"" help:"Show what this machine allows, and what to change."`
	Unshare UnshareCmd `cmd:"" help:"Run a command in the user namespace of builds."`
	Cfg     ConfigCmd  `cmd:"" name:"config" help:"Show each option's value and where it comes from."`
	Version VersionCmd `cmd:"" help:"Show the version."`
	Help    HelpCmd    `cmd:"" name:"help" help:"Show help for a command."`

	Globals
}

// entries are the other lives of this program, by the name it is started under. They never return.
var entries = map[string]func(){
	exec.InnerName:   innerMain,
	exec.ExtractName: extractMain,
	unshareName:      unshareMain,
}

func init() {
	// The processes that these packages start are this program again; they never come back from here.
	userns.Init()
	sandbox.Init()
	if os.Args[0] == exec.InnerName {
		// On the main thread, which init functions run on: the death signal is a thread's.
		settleErr = userns.Settle()
		sandbox.PinMain()
	}
}

// settleErr is why the inner process cannot work; its first answer says it.
var settleErr error

func main() {
	if entry, ok := entries[os.Args[0]]; ok {
		entry()
	}
	// A cached build allocates a few MiB and ends. Memory that is never touched takes no room, and the collector first comes when as much
	// again has been allocated.
	room := make([]byte, 16<<20)
	code := run(os.Args[1:], Globals{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv})
	runtime.KeepAlive(room)
	os.Exit(code)
}

// run is the whole program but for the process: it returns the exit code.
func run(args []string, world Globals) int {
	ctx, stop := withSignals(context.Background(), world.stderr)
	defer stop()
	var g grammar
	g.Globals = world
	err := catch(g.stderr, func() error { return g.run(ctx, args) })
	return report(ctx, &g.Globals, err)
}

func (g *grammar) run(ctx context.Context, args []string) error {
	if wantsVersion(args) {
		return printShortVersion(g.stdout)
	}
	if len(args) == 1 && args[0] == "version" {
		return new(VersionCmd).Run(&g.Globals) // without the grammar, which takes longer to make than all the rest
	}
	args = withoutBuildx(args)
	var err error
	if g.settings, err = loadSettings(args, g.getenv); err != nil {
		return err
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	root, globals := g.needed(args)
	k, err := newParser(g, root)
	if err != nil {
		return err
	}
	g.model = k
	cmd, err := k.Parse(longForms(k.Model, args))
	if errors.Is(err, errHelpShown) {
		return nil
	}
	if err != nil {
		return usageError(args, err)
	}
	if err := g.settings.check(k.Model); err != nil {
		return err
	}
	g.Globals = *globals
	cmd.BindTo(ctx, (*context.Context)(nil))
	return cmd.Run(&g.Globals)
}

// needed is the part of the grammar that the arguments need, and the globals in it. To make all of it takes longer than
// most commands, and a parser reads one command. What looks at the others needs the whole: help, config, a configuration
// file, and whoever mistypes the command.
func (g *grammar) needed(args []string) (root any, globals *Globals) {
	at := commandIndex(args)
	helps := slices.ContainsFunc(args, func(a string) bool { return a == "-h" || strings.HasPrefix(a, "--help") })
	if at == len(args) || helps || g.settings.values != nil {
		return g, &g.Globals
	}
	t := reflect.TypeFor[grammar]()
	for i := range t.NumField() {
		f := t.Field(i)
		name := cmp.Or(f.Tag.Get("name"), strings.ToLower(f.Name))
		if f.Anonymous || name == "help" || name == "config" {
			continue
		}
		if name == args[at] || slices.Contains(strings.Split(f.Tag.Get("aliases"), ","), args[at]) {
			return g.alone(f)
		}
	}
	return g, &g.Globals
}

// alone is a grammar of one command.
func (g *grammar) alone(command reflect.StructField) (root any, globals *Globals) {
	v := reflect.New(reflect.StructOf([]reflect.StructField{
		{Name: command.Name, Type: command.Type, Tag: command.Tag},
		{Name: "Globals", Type: reflect.TypeFor[Globals](), Tag: `embed:""`},
	}))
	globals = v.Elem().Field(1).Addr().Interface().(*Globals)
	*globals = g.Globals
	return v.Interface(), globals
}

// newParser makes a parser of g, or of a part of it.
func newParser(g *grammar, root any) (*kong.Kong, error) {
	k, err := kong.New(root,
		kong.Name("img"),
		kong.Description("Builds container images from Dockerfiles, without a daemon and without root.\n\n"+
			"  img build -t app .\n  img push app"),
		kong.Writers(g.stdout, g.stderr),
		kong.NoDefaultHelp(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true, WrapUpperBound: 100}),
		kong.Resolvers(kong.ResolverFunc(func(_ *kong.Context, p *kong.Path, f *kong.Flag) (any, error) {
			return g.settings.resolve(p.Node(), f)
		})),
	)
	if err != nil {
		return nil, fmt.Errorf("command line grammar: %w", err)
	}
	return k, nil
}

// longForms makes -t=x, which kong would take for a value "=x", --tag=x.
func longForms(app *kong.Application, args []string) []string {
	at := commandIndex(args)
	var flags []*kong.Flag
	for _, c := range app.Children {
		if at < len(args) && (c.Name == args[at] || slices.Contains(c.Aliases, args[at])) {
			flags = c.Flags
		}
	}
	flags = append(slices.Clip(flags), app.Flags...)
	out := slices.Clone(args)
	for i, a := range out {
		if a == "--" {
			break
		}
		if len(a) < 3 || a[0] != '-' || a[1] == '-' || a[2] != '=' {
			continue
		}
		j := slices.IndexFunc(flags, func(f *kong.Flag) bool { return f.Short == rune(a[1]) })
		if j >= 0 {
			out[i] = "--" + flags[j].Name + a[2:]
		}
	}
	return out
}

// withoutBuildx makes `buildx build` of scripts `build`.
func withoutBuildx(args []string) []string {
	i := slices.Index(args, "buildx")
	if i < 0 || i+1 == len(args) || args[i+1] != "build" || i != commandIndex(args) {
		return args
	}
	return slices.Delete(slices.Clone(args), i, i+1)
}

// commandIndex is where the command stands, after global options; len(args) if there is none.
func commandIndex(args []string) int {
	for i := 0; i < len(args); i++ {
		switch a := args[i]; {
		case a == "-s" || a == "-b" || a == "--state" || a == "--backend" || a == "--config":
			i++
		case !strings.HasPrefix(a, "-"):
			return i
		}
	}
	return len(args)
}

// wantsVersion reports whether -v or --version stands before any command, where it is not build's --volume.
func wantsVersion(args []string) bool {
	for _, a := range args[:commandIndex(args)] {
		if a == "-v" || a == "--version" {
			return true
		}
	}
	return false
}

// errHelpShown ends parsing after help was printed.
var errHelpShown = errors.New("help was shown")

type helpFlag bool

// BeforeReset prints help before anything about the other arguments is checked.
func (helpFlag) BeforeReset(k *kong.Context) error {
	if err := k.PrintUsage(false); err != nil {
		return err
	}
	return errHelpShown
}

// HelpCmd is `img help [COMMAND]`.
type HelpCmd struct {
	Command []string `arg:"" optional:"" help:"Command to explain."`
}

// Run shows the same as `img COMMAND --help`.
func (c *HelpCmd) Run(g *Globals) error {
	_, err := g.model.Parse(append(c.Command, "--help"))
	if errors.Is(err, errHelpShown) {
		return nil
	}
	return usageError(c.Command, err)
}
