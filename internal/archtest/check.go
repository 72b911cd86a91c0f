package archtest

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Check reads every Go file of the module's tree, whatever platform it is for,
// and returns the breaches of the rules, one a line as `file:line: what is wrong`,
// sorted. Files in testdata, in other modules and in folders that the go command
// ignores do not count.
//
// It parses the source instead of asking the go command: a rule must hold for
// the Windows files on a Linux machine too.
func Check(tree fs.FS) ([]string, error) {
	c := &checker{fset: token.NewFileSet(), packages: map[string]*pkg{}}
	err := fs.WalkDir(tree, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if name != "." && ignored(tree, name) {
				return fs.SkipDir
			}
			return nil
		}
		if path.Ext(name) != ".go" || strings.HasPrefix(path.Base(name), "_") || strings.HasPrefix(path.Base(name), ".") {
			return nil
		}
		source, err := fs.ReadFile(tree, name)
		if err != nil {
			return err
		}
		return c.file(name, source)
	})
	if err != nil {
		return nil, fmt.Errorf("read source tree: %w", err)
	}
	c.comments()
	slices.Sort(c.breaches)
	return slices.Compact(c.breaches), nil
}

// ignored tells whether the go command would pass the folder over.
func ignored(tree fs.FS, dir string) bool {
	base := path.Base(dir)
	if base == "testdata" || base == "vendor" || base == "node_modules" || base[0] == '.' || base[0] == '_' {
		return true
	}
	_, err := fs.Stat(tree, path.Join(dir, "go.mod"))
	return err == nil
}

type checker struct {
	fset     *token.FileSet
	packages map[string]*pkg
	breaches []string
}

// pkg is what is to be known of a folder's package once all files are read.
type pkg struct {
	name     string              // without _test, where there is more than tests
	first    string              // a file to point at
	onlyTest bool                // no file but tests so far
	comments map[string][]string // the files with a package comment, by package name
}

func (c *checker) breach(pos token.Pos, format string, args ...any) {
	p := c.fset.Position(pos)
	c.breaches = append(c.breaches, fmt.Sprintf("%s:%d: ", p.Filename, p.Line)+fmt.Sprintf(format, args...))
}

func (c *checker) file(name string, source []byte) error {
	parsed, err := parser.ParseFile(c.fset, name, source, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	dir := path.Dir(name)
	inTest := strings.HasSuffix(name, "_test.go")
	c.remember(dir, name, parsed, inTest)
	if slices.Contains(emptyWords, strings.TrimSuffix(parsed.Name.Name, "_test")) {
		c.breach(parsed.Name.Pos(), "package %s: name it after what it does", parsed.Name.Name)
	}
	c.suppressions(parsed)
	if !ast.IsGenerated(parsed) {
		c.types(parsed)
		if n := bytes.Count(source, []byte("\n")); n > maxLines {
			c.breach(parsed.FileStart, "%d lines; at most %d", n, maxLines)
		}
	}

	from := layerOf(dir)
	if from == nil {
		c.breach(parsed.Package, "folder %s is on no layer; give it one in internal/archtest/rules.go", dir)
		return nil
	}
	for _, spec := range parsed.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return fmt.Errorf("%s: unquote import %s: %w", name, spec.Path.Value, err)
		}
		if wrong := judge(from, dir, imported, inTest); wrong != "" {
			c.breach(spec.Pos(), "%s", wrong)
		}
	}
	return nil
}

// judge says what is wrong with the import, or nothing.
func judge(from *layer, dir, imported string, inTest bool) string {
	if !below(imported, module) {
		switch {
		case from.stdOnly && !inTest && outside(imported):
			return fmt.Sprintf("%s imports %s; %s imports the standard library only", dir, imported, from.dir)
		case !from.kernel && slices.ContainsFunc(kernelModules, func(m string) bool { return below(imported, m) }):
			return fmt.Sprintf("%s imports %s; only internal/kernel and internal/lab do", dir, imported)
		}
		return ""
	}
	target := strings.TrimPrefix(strings.TrimPrefix(imported, module), "/")
	to := layerOf(target)
	switch {
	case to == nil:
		return fmt.Sprintf("%s imports %s, which is on no layer", dir, imported)
	case !from.mayImport(to, inTest):
		return fmt.Sprintf("%s imports %s; %s", dir, imported, from.allowance())
	case !inTest && testOnly(target) && !testOnly(dir) && !from.any:
		return fmt.Sprintf("%s imports %s; only tests do", dir, imported)
	}
	return ""
}

// outside tells whether an import path is of another module: the standard
// library's have no dot in their first element.
func outside(imported string) bool {
	first, _, _ := strings.Cut(imported, "/")
	return strings.Contains(first, ".")
}

// testOnly tells whether the folder's package is made for tests, as httptest is.
func testOnly(dir string) bool {
	return strings.HasSuffix(path.Base(dir), "test")
}

// allowance says what the layer may import.
func (l *layer) allowance() string {
	if len(l.uses) == 0 {
		return l.dir + " imports nothing of this module"
	}
	return l.dir + " may import only " + strings.Join(l.uses, ", ")
}

func (c *checker) remember(dir, name string, parsed *ast.File, inTest bool) {
	p := c.packages[dir]
	if p == nil {
		p = &pkg{name: strings.TrimSuffix(parsed.Name.Name, "_test"), first: name, onlyTest: true, comments: map[string][]string{}}
		c.packages[dir] = p
	}
	if p.onlyTest && !inTest {
		p.onlyTest, p.name, p.first = false, parsed.Name.Name, name
	}
	if parsed.Doc == nil {
		return
	}
	p.comments[parsed.Name.Name] = append(p.comments[parsed.Name.Name], name)
	text := parsed.Doc.Text()
	if parsed.Name.Name != "main" && !strings.HasPrefix(text, "Package "+parsed.Name.Name+" ") {
		c.breach(parsed.Doc.Pos(), "the package comment begins with %q", "Package "+parsed.Name.Name)
	}
}

func (c *checker) comments() {
	for dir, p := range c.packages {
		if len(p.comments) == 0 {
			c.breaches = append(c.breaches, fmt.Sprintf("%s:1: package %s (%s) has no package comment", p.first, p.name, dir))
		}
		for _, files := range p.comments {
			for _, more := range files[1:] {
				c.breaches = append(c.breaches, fmt.Sprintf("%s:1: a second package comment; %s has one", more, files[0]))
			}
		}
	}
}

func (c *checker) types(parsed *ast.File) {
	ast.Inspect(parsed, func(n ast.Node) bool {
		if spec, ok := n.(*ast.TypeSpec); ok && slices.Contains(emptyWords, lastWord(spec.Name.Name)) {
			c.breach(spec.Pos(), "type %s: name it after what it is", spec.Name.Name)
		}
		return true
	})
}

// lastWord returns the last word of a name in mixed caps, in lower case.
func lastWord(name string) string {
	last := 0
	for i, r := range name {
		if unicode.IsUpper(r) {
			last = i
		}
	}
	return strings.ToLower(name[last:])
}

func (c *checker) suppressions(parsed *ast.File) {
	for _, group := range parsed.Comments {
		for _, comment := range group.List {
			for _, mark := range []string{"//nolint", "//lint:ignore", "//lint:file-ignore", "// #nosec", "//#nosec"} {
				if strings.HasPrefix(comment.Text, mark) {
					c.breach(comment.Pos(), "%s: mend the code or change .golangci.yml for all", strings.TrimSpace(mark))
				}
			}
		}
	}
}
