import pytest

from volgate.amendment import overstep

DISK = (
    '<disk type="file" device="disk" snapshot="external"><driver name="qemu" type="raw" cache="none" io="native"/><source file="/v/a"/>'
    '<backingStore/><target dev="vda" bus="virtio"/><serial>s1</serial><readonly/><alias name="ua-1"/></disk>'
)


@pytest.mark.parametrize("changed", [
    DISK,
    DISK.replace('cache="none"', 'cache="writeback" queues="4"'),
    DISK.replace("<readonly/>", "<readonly/>\n  <iotune><total_iops_sec>9</total_iops_sec></iotune>\n"),
    DISK.replace("<backingStore/>", "<backingStore></backingStore><wwn>5000c50015ea71ac</wwn>"),
    DISK.replace('type="file" device="disk"', 'device="disk" type="file"'),
])  # fmt: skip
def test_how_a_disk_is_driven_may_change(changed):
    assert overstep(DISK, changed) == ""


@pytest.mark.parametrize(("changed", "told"), [
    (DISK.replace("/v/a", "/v/b"), "<source>"),
    (DISK.replace('type="raw"', 'type="qcow2"'), "<driver>"),
    (DISK.replace('bus="virtio"', 'bus="scsi"'), "<target>"),
    (DISK.replace("ua-1", "ua-2"), "<alias>"),
    (DISK.replace("s1", "s2"), "<serial>"),
    (DISK.replace("<readonly/>", ""), "<readonly>"),
    (DISK.replace("<readonly/>", "<readonly/><shareable/>"), "<shareable>"),
    (DISK.replace("<readonly/>", "<readonly/><transient/>"), "<transient>"),
    (DISK.replace("<backingStore/>", '<backingStore type="file"><source file="/etc/shadow"/></backingStore>'), "<backingStore>"),
    (DISK.replace("<backingStore/>", "<backingStore/><backingStore/>"), "<backingStore>"),
    (DISK.replace('device="disk"', 'device="lun"'), "<disk>"),
    (DISK.replace("disk", "hostdev"), "must stay"),
    (DISK[:-1], "no XML"),
    ("", "no XML"),
    (f"<!DOCTYPE d [<!ENTITY a 'b'>]>{DISK}", "without declarations"),
    (DISK.replace("<readonly/>", f"<readonly/><iotune>{' ' * 70000}</iotune>"), "at most 65536 bytes"),
])  # fmt: skip
def test_what_a_disk_is_may_not(changed, told):
    assert told in overstep(DISK, changed)
