"""Which fields say where a picture was taken."""

import pytest

from voken.data.location import is_location, without_location


@pytest.mark.parametrize(
    "name",
    [
        "latitude", "Longitude", "lat", "lng", "gps", "gps_lat", "GPSLatitude", "EXIF:GPSPosition", "exif.gps.lon",
        "geotag", "geoLocation", "geo", "coordinates", "camera_lat", "latLng", "location", "GPSAltitudeRef", "LAT",
        "Long",
    ],
)  # fmt: skip
def test_names_of_locations(name):
    assert is_location(name)


@pytest.mark.parametrize(
    "name",
    ["title", "flat", "relation", "platform", "slate", "lonely", "long_title", "geometry", "date"],
)
def test_other_names(name):
    assert not is_location(name)


def test_values_at_any_depth():
    value = {"a": [{"lat": 1, "b": {"gps": {"x": 1}, "c": 2}}, 3], "lon": 4, "d": "lat"}
    assert without_location(value) == {"a": [{"b": {"c": 2}}, 3], "d": "lat"}
    assert without_location([{"lat": 1}]) == [{}]
    assert without_location("lat") == "lat"
