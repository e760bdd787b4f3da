import json

import numpy as np
import pytest
import torch

from etude.data.signals import iq_folder, load_iq

SAMPLES = np.array([1 + 2j, -0.5 - 0.25j, 0.125j], dtype=np.complex64)


def sigmf(folder, numbers, datatype, name="cap", **meta):
    fields = {"core:datatype": datatype, "core:sample_rate": 2e6, **meta}
    (folder / f"{name}.sigmf-meta").write_text(json.dumps({"global": fields, "captures": [], "annotations": []}))
    numbers.tofile(folder / f"{name}.sigmf-data")
    return folder / f"{name}.sigmf-meta"


def test_a_complex_npy_is_read(tmp_path):
    np.save(tmp_path / "a.npy", SAMPLES.astype(np.complex128))
    assert torch.equal(load_iq(tmp_path / "a.npy").samples, torch.from_numpy(SAMPLES))


def test_an_npy_of_i_and_q_columns_is_read(tmp_path):
    np.save(tmp_path / "a.npy", np.stack([SAMPLES.real, SAMPLES.imag], axis=1))
    assert torch.equal(load_iq(tmp_path / "a.npy").samples, torch.from_numpy(SAMPLES))


@pytest.mark.parametrize("dtype", ["complex64", "float32"])
def test_raw_floats_hold_i_and_q_in_turn(tmp_path, dtype):
    SAMPLES.tofile(tmp_path / "a.iq")
    recording = load_iq(tmp_path / "a.iq", dtype, sample_rate=1e6)
    assert torch.equal(recording.samples, torch.from_numpy(SAMPLES))
    assert recording.sample_rate == 1e6


def test_raw_integers_are_scaled_by_their_full_scale(tmp_path):
    np.array([16384, -32768], dtype="<i2").tofile(tmp_path / "a.iq")
    assert load_iq(tmp_path / "a.iq", "int16").samples.tolist() == [0.5 - 1j]


def test_unsigned_integers_have_their_zero_in_the_middle(tmp_path):
    np.array([0, 255], dtype=np.uint8).tofile(tmp_path / "a.iq")
    assert load_iq(tmp_path / "a.iq", "uint8").samples.tolist() == [-127.5 / 128 + 1j * 127.5 / 128]


@pytest.mark.parametrize("suffix", [".sigmf-meta", ".sigmf-data", ""])
def test_a_sigmf_pair_is_read_by_either_file_or_their_stem(tmp_path, suffix):
    sigmf(tmp_path, SAMPLES.view("<f4"), "cf32_le")
    recording = load_iq(tmp_path / f"cap{suffix}")
    assert torch.equal(recording.samples, torch.from_numpy(SAMPLES))
    assert recording.sample_rate == 2e6
    assert recording.name == "cap"


@pytest.mark.parametrize(
    ("datatype", "code", "full"), [("ci16_le", "<i2", 32768), ("ci16_be", ">i2", 32768), ("ci8", "i1", 128)]
)
def test_sigmf_integers_are_read_in_their_byte_order(tmp_path, datatype, code, full):
    file = sigmf(tmp_path, np.array([1, -2, 3, 4], dtype=code), datatype)
    np.testing.assert_allclose(load_iq(file).samples.numpy() * full, [1 - 2j, 3 + 4j])


def test_the_meta_is_kept(tmp_path):
    file = sigmf(tmp_path, SAMPLES.view("<f4"), "cf32_le", **{"core:hw": "a receiver"})
    assert load_iq(file).meta["global"]["core:hw"] == "a receiver"


def test_real_valued_sigmf_is_refused(tmp_path):
    with pytest.raises(ValueError, match="rf32_le: real-valued samples are not IQ"):
        load_iq(sigmf(tmp_path, SAMPLES.view("<f4"), "rf32_le"))


def test_a_real_valued_npy_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(10))
    with pytest.raises(ValueError, match=r"float64 of shape \(10,\): real-valued signals are not IQ"):
        load_iq(tmp_path / "a.npy")


def test_another_sample_rate_than_expected_is_refused(tmp_path):
    file = sigmf(tmp_path, SAMPLES.view("<f4"), "cf32_le")
    with pytest.raises(ValueError, match=r"2e\+06 samples per second, expected 1e\+06"):
        load_iq(file, expected_rate=1e6)


def test_an_unknown_sample_rate_is_refused_where_one_is_expected(tmp_path):
    SAMPLES.tofile(tmp_path / "a.iq")
    with pytest.raises(ValueError, match="unknown sample rate, expected"):
        load_iq(tmp_path / "a.iq", expected_rate=1e6)


def test_a_sample_rate_against_the_files_own_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not sample_rate=3"):
        load_iq(sigmf(tmp_path, SAMPLES.view("<f4"), "cf32_le"), sample_rate=3)


def test_half_a_sample_is_refused(tmp_path):
    np.zeros(3, dtype="<i2").tofile(tmp_path / "a.iq")
    with pytest.raises(ValueError, match="3 numbers: I and Q in turn"):
        load_iq(tmp_path / "a.iq", "int16")


def test_a_broken_count_of_bytes_is_refused(tmp_path):
    (tmp_path / "a.iq").write_bytes(b"12345")
    with pytest.raises(ValueError, match="5 bytes, no multiple of the 8"):
        load_iq(tmp_path / "a.iq")


def test_an_empty_recording_is_refused(tmp_path):
    (tmp_path / "a.iq").write_bytes(b"")
    with pytest.raises(ValueError, match="no samples"):
        load_iq(tmp_path / "a.iq")


def test_nan_samples_are_refused(tmp_path):
    np.full(4, np.nan, dtype=np.complex64).tofile(tmp_path / "a.iq")
    with pytest.raises(ValueError, match="NaN"):
        load_iq(tmp_path / "a.iq")


def test_an_unknown_dtype_is_refused(tmp_path):
    (tmp_path / "a.iq").write_bytes(b"12345678")
    with pytest.raises(ValueError, match=r"must be one of complex64.*got 'int12'"):
        load_iq(tmp_path / "a.iq", "int12")


def test_a_sigmf_meta_without_its_data_is_named(tmp_path):
    file = sigmf(tmp_path, SAMPLES.view("<f4"), "cf32_le")
    (tmp_path / "cap.sigmf-data").unlink()
    with pytest.raises(FileNotFoundError, match=r"cap.sigmf-data is missing"):
        load_iq(file)


@pytest.mark.parametrize("text", ["{", "[]", '{"global": {}}', '{"global": {"core:datatype": "cx9_le"}}'])
def test_broken_sigmf_metadata_are_refused(tmp_path, text):
    file = sigmf(tmp_path, SAMPLES.view("<f4"), "cf32_le")
    file.write_text(text)
    with pytest.raises(ValueError, match=r"cap.sigmf-meta is not SigMF metadata"):
        load_iq(file)


@pytest.fixture
def recordings(tmp_path):
    for label, name in enumerate(("clear", "jammed")):
        (tmp_path / name).mkdir()
        ramp = (np.arange(100) + 1000 * label).astype(np.complex64)
        np.save(tmp_path / name / "one.npy", ramp)
    return tmp_path


def test_a_folder_of_recordings_is_cut_in_time_into_parts(recordings):
    data = iq_folder(recordings, 5, sample_rate=1e6)
    assert data.meta["classes"] == ("clear", "jammed")
    assert [len(part) for part in (data.train, data.val, data.test)] == [28, 4, 8]
    assert data.train.inputs.real.remainder(1000).max() < 70 <= data.val.inputs.real.remainder(1000).min()
    assert data.test.inputs.real.remainder(1000).min() >= 80
    assert torch.equal(data.test.targets, (data.test.inputs.real[:, 0] >= 1000).long())


def test_overlapping_windows_do_not_leave_their_part(recordings):
    data = iq_folder(recordings, 8, hop=1, sample_rate=1e6)
    train, test = data.train.inputs.real.unique(), data.test.inputs.real.unique()
    assert not set(train.tolist()) & set(test.tolist())


def test_windows_longer_than_a_part_are_refused(recordings):
    with pytest.raises(ValueError, match="long enough for a val window of 11 samples"):
        iq_folder(recordings, 11, sample_rate=1e6)


def test_a_folder_of_unknown_rate_is_refused(recordings):
    with pytest.raises(ValueError, match="does not say its sample rate"):
        iq_folder(recordings, 5)


def test_one_class_of_recordings_is_refused(recordings):
    (recordings / "jammed" / "one.npy").unlink()
    (recordings / "jammed").rmdir()
    with pytest.raises(ValueError, match=r"at least two, got \['clear'\]"):
        iq_folder(recordings, 5, sample_rate=1e6)
