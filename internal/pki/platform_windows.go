package pki

import (
	"fmt"
	"os"

	"golang.org/x/sys/windows"
)

// What the system says where a connection could not be made or broke.
const (
	errRefused       = windows.WSAECONNREFUSED
	errReset         = windows.WSAECONNRESET
	errPipe          = windows.WSAESHUTDOWN
	errAborted       = windows.WSAECONNABORTED
	errNoHost        = windows.WSAEHOSTUNREACH
	errNoNet         = windows.WSAENETUNREACH
	errTimeout       = windows.WSAETIMEDOUT
	errNotPermitted  = windows.WSAEACCES
	errAddrNotUsable = windows.WSAEADDRNOTAVAIL
)

// ownerOnly gives a file to its owner, the system and administrators, and takes
// what it would inherit: a directory below ProgramData lets every user read.
const ownerOnly = "D:P(A;;FA;;;OW)(A;;FA;;;SY)(A;;FA;;;BA)"

func makePrivate(f *os.File) error {
	sd, err := windows.SecurityDescriptorFromString(ownerOnly)
	if err != nil {
		return fmt.Errorf("make access list: %w", err)
	}
	acl, _, err := sd.DACL()
	if err != nil {
		return fmt.Errorf("make access list: %w", err)
	}
	err = windows.SetNamedSecurityInfo(f.Name(), windows.SE_FILE_OBJECT,
		windows.DACL_SECURITY_INFORMATION|windows.PROTECTED_DACL_SECURITY_INFORMATION, nil, nil, acl, nil)
	if err != nil {
		return fmt.Errorf("set access list: %w", err)
	}
	return nil
}

// checkDir does not judge access lists: the files have their own.
func checkDir(dir string) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("look at data directory: %w", err)
	}
	if !fi.IsDir() {
		return fmt.Errorf("data directory %s is no directory", dir)
	}
	return nil
}

func checkPrivate(dir string) error { return checkDir(dir) }

// syncDir has nothing to do: NTFS keeps renames in its journal, and a directory
// cannot be opened for syncing.
func syncDir(string) error { return nil }
